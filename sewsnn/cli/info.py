"""``sewsnn info``."""

import platform


def add(commands) -> None:
    commands.add_parser("info", help="versions, backends and devices").set_defaults(run=_info)


def _info(_) -> int:
    import torch

    import sewsnn
    from sewsnn.ops.load import describe_backends

    print(f"sewsnn {sewsnn.__version__}, torch {torch.__version__}, Python {platform.python_version()}")
    for name, description in describe_backends().items():
        print(f"backend {name}: {description}")
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            print(f"cuda:{i}: {torch.cuda.get_device_name(i)}")
    else:
        print("CUDA device: none")
    print(f"threads: {torch.get_num_threads()}")
    return 0
