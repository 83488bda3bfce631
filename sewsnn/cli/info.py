"""``sewsnn info``."""

import platform


def add(commands) -> None:
    info = commands.add_parser(
        "info",
        help="show versions, backends and devices",
        description="Shows the versions, the available backends, the GPUs and the number of CPU threads.",
    )
    info.set_defaults(run=_info)


def _info(_) -> int:
    import torch

    import sewsnn
    from sewsnn.ops.load import describe_backends, why_not_native
    from sewsnn.surrogate import ATan

    print(f"sewsnn {sewsnn.__version__}, torch {torch.__version__}, Python {platform.python_version()}")
    for name, description in describe_backends().items():
        print(f"backend {name}: {description}")
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            reason = why_not_native(torch.device("cuda", i), ATan())
            print(f"cuda:{i}: {torch.cuda.get_device_name(i)}: {reason or 'the native kernels are available'}")
    else:
        print("CUDA device: none")
    print(f"threads: {torch.get_num_threads()}")
    return 0
