"""What failed operations raise."""

import torch.distributed as dist

from . import _C


class CommError(dist.DistBackendError):
    """An operation did not end well; the text says why."""


class RankLostError(CommError):
    """A rank was lost: `rank`, `incarnation` and `epoch` name it (None where unknown)."""

    def __init__(self, *args):
        super().__init__(*args)
        loss = _C.last_loss()
        self.rank = loss.get("rank")
        self.incarnation = loss.get("incarnation")
        self.epoch = loss.get("epoch")


class RevokedError(CommError):
    """The epoch ended for another reason than a loss: a deadline of somebody, damaged memory."""


class DeadlineError(CommError):
    """The operation's own deadline passed; it is not done on any rank."""


_C.set_error_types(RankLostError, RevokedError, CommError, DeadlineError)
