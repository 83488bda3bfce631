"""ImageNet decoded and resized by NVIDIA DALI, on the GPU if there is one.

sewsnn passes DALI the encoded images in its own order, together with a crop window and a flip for each image, drawn
from the seed of the sample. The crops therefore equal those of the torchvision loader, and the order, the share of each
rank and a resume in the middle of an epoch are exact. The pixels differ from the torchvision loader by the rounding of
the decoder and of the resize.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from sewsnn.data import crops, decoding
from sewsnn.data.imagenet import Images, Loaded, normalise
from sewsnn.data.loading import LoadedSource, _Batch, _Collate, _Loading
from sewsnn.data.source import Options
from sewsnn.errors import DataError, UserError
from sewsnn.progress import tell

_UNEXPLAINED = 3  # consecutive batches that DALI cannot decode although Pillow can
_AHEAD = 3  # batches read ahead of DALI; DALI itself prefetches two


class DaliSource(LoadedSource):
    """Batches ``uint8 [N, 3, H, W]`` as in :class:`LoadedSource`, on the current CUDA device if there is one.

    Args:
        train: the encoded training images.
        test: the encoded test images.
        num_classes: number of classes.
        options: see :class:`~sewsnn.data.source.Options`. ``workers`` threads read files and as many decode (0: one
            thread each).

    Raises:
        UserError: DALI or Pillow is not installed.
    """

    def __init__(self, train: Images, test: Images, num_classes: int, options: Options):
        self._dali = import_dali()
        parts = (EncodedSamples(images, options) for images in (train, test))
        super().__init__(*parts, num_classes, 3, False, options, normalise)

    def _batches(self, samples, plan) -> Iterator[tuple[Tensor, Tensor]]:
        # DALI prefetches and does not report which batch holds an image that it cannot decode. After a failure, the
        # next batch runs alone. Whether it fails then does not depend on timing, so a resumed run has the same pixels.
        step, alone, unexplained = 0, False, 0
        while step < len(plan):
            places = plan[step : step + 1] if alone else plan[step:]
            try:
                for batch in self._decoded(samples, places):
                    step, unexplained = step + 1, 0
                    yield from self._kept(batch)
                alone = False
            except RuntimeError as error:
                if not alone:
                    alone = True
                    continue
                batch = self._without_dali(samples, plan[step])
                if not (batch.corrupt or batch.error):
                    unexplained += 1
                    tell(f"sewsnn: DALI could not decode a batch, so Pillow decoded it: {_reason(error)}")
                if unexplained > _UNEXPLAINED:
                    raise DataError(
                        f"data.loader: DALI cannot decode images that torchvision decodes: {_reason(error)}"
                    ) from None
                step, alone = step + 1, False
                yield from self._kept(batch)

    def _decoded(self, samples: "EncodedSamples", plan) -> Iterator[_Batch]:
        """Decodes the batches of the plan with DALI. Raises RuntimeError if DALI cannot decode one of the batches in
        its queue."""
        threads = max(1, self.options.workers)
        stream = (torch.cuda.current_stream(),) if torch.cuda.is_available() else ()  # the stream of the outputs
        with ThreadPoolExecutor(threads) as pool:
            reader = _Reader(_Loading(samples, self.options.on_corrupt == "skip"), plan, pool)
            pipeline = self._pipeline(reader, threads, samples is self.train)
            try:
                for _ in plan:
                    try:
                        output = pipeline.run(*stream)
                    except StopIteration:  # only batches without an image are left
                        output = None
                    while reader.read:
                        batch = reader.read.popleft()
                        if len(batch.y) and not batch.error:
                            batch = batch._replace(x=_to_torch(output[0]))
                            yield batch
                            break
                        yield batch
            finally:
                reader.stop()

    def _pipeline(self, reader, threads: int, training: bool):
        fn, types = self._dali.fn, self._dali.types
        cuda = torch.cuda.is_available()
        size = self.options.image_size if training else self.options.test_pixels
        device = "mixed" if cuda else "cpu"
        pipeline = self._dali.Pipeline(
            self.options.batch_size, threads, torch.cuda.current_device() if cuda else None, prefetch_queue_depth=2
        )
        decoding = {"device": device, "output_type": types.RGB, "adjust_orientation": False}
        if cuda:
            decoding["jpeg_fancy_upsampling"] = True  # as the CPU decoders do
        filters = {"interp_type": types.INTERP_LINEAR, "antialias": True}
        kinds = (types.UINT8, types.INT32, types.INT32, types.INT32)[: 4 if training else 3]
        with pipeline:
            columns = fn.external_source(source=reader, num_outputs=len(kinds), batch=True, dtype=list(kinds))
            if training:
                data, start, shape, flip = columns
                images = fn.decoders.image_slice(data, start=start, shape=shape, axis_names="HW", **decoding)
                images = fn.resize(images, size=[size, size], **filters)
                images = fn.flip(images, horizontal=flip)
            else:
                data, start, to = columns
                images = fn.resize(fn.decoders.image(data, **decoding), size=fn.cast(to, dtype=types.FLOAT), **filters)
                images = fn.slice(images, start=start, shape=[size, size], axis_names="HW")
            pipeline.set_outputs(fn.transpose(images, perm=[2, 0, 1]))
        pipeline.build()
        return pipeline

    def _without_dali(self, samples: "EncodedSamples", places) -> _Batch:
        """Loads a batch with the torchvision loader, which reports the name of a damaged file."""
        loading = _Loading(Loaded(samples.images, self.options), self.options.on_corrupt == "skip")
        return _Collate(False)([loading[place] for place in places])


class EncodedSamples:
    """:class:`~sewsnn.data.loading.Samples` of encoded images, as DALI takes them.

    A training sample is ``(bytes, start, shape, flip)``: the crop window that is cut out and then resized, and whether
    the result is mirrored. A test sample is ``(bytes, start, size)``: the size to which the image is resized, and the
    start of the centre crop in it. All entries are arrays; height comes before width.
    """

    def __init__(self, images: Images, options: Options):
        self.images, self.options = images, options

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int, seed: int | None) -> tuple[tuple[np.ndarray, ...], int]:
        path, options = self.images.path(index), self.options
        data = self.images.read(index)
        height, width = decoding.whole_size(data, path)
        if seed is None:
            size = decoding.check_size(crops.resized(height, width, options.resize), path)
            numbers = (crops.centre_window(*size, options.test_pixels)[:2], size)
        else:
            generator = torch.Generator().manual_seed(seed)
            window = crops.random_window(height, width, options.scale_min, generator)
            numbers = (window[:2], window[2:], crops.random_flip(generator))
        arrays = (np.array(number, np.int32) for number in numbers)
        return (np.frombuffer(data, np.uint8), *arrays), int(self.images.labels[index])


class _Reader:
    """The external source of the DALI pipeline: each call returns the columns of the next batch of the plan. Threads
    read ahead.

    ``read`` holds the batches, without pixels, that were passed to DALI and have not come out yet. It also holds
    batches without an image and batches with an error, which are not passed to DALI.
    """

    def __init__(self, loading: _Loading, plan, pool: ThreadPoolExecutor):
        self.loading, self.pool, self.plan = loading, pool, iter(plan)
        self.read: deque[_Batch] = deque()
        self.ahead: deque[list[Future]] = deque()

    def __call__(self) -> tuple[list[np.ndarray], ...]:
        while True:
            self._read_ahead()
            if not self.ahead:
                raise StopIteration
            samples = [future.result() for future in self.ahead.popleft()]
            self._read_ahead()
            found = [x for x, *_ in samples if x is not None]
            batch = _Collate(False)([(None if x is None else torch.empty(0), *rest) for x, *rest in samples])
            self.read.append(batch)
            if batch.error:
                self.stop()
                raise StopIteration
            if found:
                return tuple(list(column) for column in zip(*found, strict=True))

    def stop(self) -> None:
        self.plan = iter(())
        for batch in self.ahead:
            for future in batch:
                future.cancel()
        self.ahead.clear()

    def _read_ahead(self) -> None:
        while len(self.ahead) < _AHEAD and (batch := next(self.plan, None)) is not None:
            self.ahead.append([self.pool.submit(self.loading.__getitem__, place) for place in batch])


def import_dali() -> ModuleType:
    """Imports ``nvidia.dali`` with the submodules used here.

    Raises:
        UserError: DALI is not installed, or cannot be loaded.
    """
    try:
        import nvidia.dali
        import nvidia.dali.fn
        import nvidia.dali.types
    except (ImportError, OSError) as error:
        raise UserError(
            f"data.loader: dali needs NVIDIA DALI ({error}). Run pip install 'sewsnn[dali]', or set --data.loader "
            "torchvision"
        ) from None
    return nvidia.dali


def _to_torch(images) -> Tensor:
    """Copies the images, because DALI reuses its memory."""
    return torch.from_dlpack(images.as_tensor()).clone()


def _reason(error: RuntimeError) -> str:
    """Returns the line of DALI's message that states the cause."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    at = next((i + 1 for i, line in enumerate(lines[:-1]) if line.startswith("encountered")), 0)
    return lines[at] if lines else type(error).__name__
