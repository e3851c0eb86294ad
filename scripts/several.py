"""torchrun that says in a line which machine did not come: `python -m scripts.several --nnodes=2 …`."""

from __future__ import annotations

import sys

from nanochat.common import UserError, run_program


def main() -> None:
    """Start processes as torchrun would, and end with the status of the first that failed."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousConnectionError, RendezvousTimeoutError

    given = run.parse_args(sys.argv[1:])  # type: ignore[no-untyped-call]
    place = f"--rdzv-endpoint={given.rdzv_endpoint}"
    try:
        run.run(given)  # type: ignore[no-untyped-call]
    except RendezvousConnectionError as error:
        raise UserError(
            f"nobody answers at {place}: name one of the machines, begin on that one as well, and let its"
            " firewall pass the port"
        ) from error
    except RendezvousTimeoutError as error:
        raise UserError(
            f"not all of --nnodes={given.nnodes} machines came to {place}: see that the command runs on each,"
            f" with this --rdzv-id ({given.rdzv_id}); --rdzv-conf=join_timeout=1800 waits half an hour"
        ) from error
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
        sys.exit(status if status > 0 else 128 - status)


if __name__ == "__main__":
    run_program(main)
