"""ImageNet decoded and resized by NVIDIA DALI: on the GPU where there is one.

DALI is given the encoded images in our order with each image's window and flip, drawn by us from the sample's seed. So
crops are those of the torchvision loader, and the order, the share of each process and going on in the middle of an
epoch are exact. Pixels differ by the rounding of two decoders and two resizings.
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

_UNEXPLAINED = 3  # batches in a run that DALI cannot decode, and Pillow can
_AHEAD = 3  # batches that are read ahead of DALI; DALI itself works two ahead


class DaliSource(LoadedSource):
    """Batches as of :class:`LoadedSource`, ``uint8 [N, 3, H, W]``, on the current CUDA device where there is one.

    Args:
        train, test: encoded images.
        num_classes: labels are below it.
        options: see there; ``workers`` threads read and as many decode (0: one).

    Raises:
        UserError: DALI or Pillow is not installed.
    """

    def __init__(self, train: Images, test: Images, num_classes: int, options: Options):
        self._dali = import_dali()
        parts = (EncodedSamples(images, options) for images in (train, test))
        super().__init__(*parts, num_classes, 3, False, options, normalise)

    def _batches(self, samples, plan) -> Iterator[tuple[Tensor, Tensor]]:
        # DALI works ahead and does not say which batch holds what it cannot decode. Where it fails, the batch that is
        # due runs alone: that it fails then does not depend on time, and a resumed run has the same pixels.
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
                    tell(f"sewsnn: a batch was decoded without DALI: {_reason(error)}")
                if unexplained > _UNEXPLAINED:
                    raise DataError(f"data.loader: DALI fails where torchvision does not: {_reason(error)}") from None
                step, alone = step + 1, False
                yield from self._kept(batch)

    def _decoded(self, samples: "EncodedSamples", plan) -> Iterator[_Batch]:
        """The plan's batches by DALI; RuntimeError where it cannot decode one of those it is at."""
        threads = max(1, self.options.workers)
        stream = (torch.cuda.current_stream(),) if torch.cuda.is_available() else ()  # outputs are bound to it
        with ThreadPoolExecutor(threads) as pool:
            reader = _Reader(_Loading(samples, self.options.on_corrupt == "skip"), plan, pool)
            pipeline = self._pipeline(reader, threads, samples is self.train)
            try:
                for _ in plan:
                    try:
                        output = pipeline.run(*stream)
                    except StopIteration:  # all that is left are batches without an image
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
            decoding["jpeg_fancy_upsampling"] = True  # as the CPU's decoders do
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
        """A batch by the torchvision loader, which knows a damaged file's name."""
        loading = _Loading(Loaded(samples.images, self.options), self.options.on_corrupt == "skip")
        return _Collate(False)([loading[place] for place in places])


class EncodedSamples:
    """:class:`~sewsnn.data.loading.Samples` that are not decoded: what DALI is told of an image.

    To train ``(bytes, start, shape, flip)``: the window that is cut out and resized, and whether it is mirrored. To
    test ``(bytes, start, size)``: what the image is resized to, and where the middle of that begins. All are arrays,
    sizes and places are height before width.
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
    """DALI's source: called for a batch, it gives the columns of the plan's next, which threads have read ahead.

    ``read``: what was given and not yet come out of DALI, without pixels; batches with no image, and those with an
    error, are in it, too, but not given.
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
    """``nvidia.dali`` with what is used of it.

    Raises:
        UserError: it is not installed, or cannot be loaded.
    """
    try:
        import nvidia.dali
        import nvidia.dali.fn
        import nvidia.dali.types
    except (ImportError, OSError) as error:
        raise UserError(
            f"data.loader: dali needs NVIDIA DALI ({error}): pip install 'sewsnn[dali]', or --data.loader torchvision"
        ) from None
    return nvidia.dali


def _to_torch(images) -> Tensor:
    """A copy: DALI uses its memory again."""
    return torch.from_dlpack(images.as_tensor()).clone()


def _reason(error: RuntimeError) -> str:
    """The line of DALI's message that says what happened."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    at = next((i + 1 for i, line in enumerate(lines[:-1]) if line.startswith("encountered")), 0)
    return lines[at] if lines else type(error).__name__
