"""Which batch belongs to which step, for ranks that go on, repeat a step, or join late."""

import itertools


class Batches:
    """The batches of `source`, by number of step.

    `source` is a function of the step's number, or an iterable that gives the same batches each
    time it is begun in the same epoch: a DataLoader, a list. After its end it is begun again, as
    the next epoch; a sampler with set_epoch() is told its number before. A newcomer begins its
    epoch with the random numbers with which its predecessor began it, and passes over the batches
    that are done.
    """

    def __init__(self, source, now, at_epoch):
        self._source = source
        self._now = now  # RandomState of this moment
        self._at_epoch = at_epoch  # RandomState with which the epoch began; registered too
        self._length = len(source) if hasattr(source, "__len__") else None
        if self._length == 0:
            raise ValueError("the loader has no batches")
        self._iterator = None
        self._next = None  # step whose batch the iterator gives next
        self._kept = None  # (step, batch, random numbers after it, those of the epoch)

    def get(self, step):
        """The batch of `step`; the same one, and the same random numbers after it, if this step is
        begun again."""
        if callable(self._source):
            return self._source(step)
        if self._kept is not None and self._kept[0] == step:
            _, batch, after, epoch = self._kept
            self._at_epoch.paste(epoch)
            self._now.paste(after)
            self._now.scatter()
            return batch
        if self._next != step or self._at_end(step):
            self._begin(step)
        batch = self._draw(step)
        self._next = step + 1
        self._now.gather()
        self._kept = (step, batch, self._now.copy(), self._at_epoch.copy())
        return batch

    def _at_end(self, step):
        return self._length is not None and step % self._length == 0

    def _begin(self, step):
        epoch, passed = divmod(step, self._length) if self._length else (0, step)
        if passed == 0:
            self._at_epoch.gather()
        else:
            self._now.gather()
            self._at_epoch.scatter()
        self._tell_epoch(epoch)
        self._iterator = iter(self._source)
        for _ in itertools.islice(self._iterator, passed):
            pass
        if passed:
            self._now.scatter()

    def _tell_epoch(self, epoch):
        samplers = (getattr(self._source, name, None) for name in ("sampler", "batch_sampler"))
        for each in (self._source, *samplers):
            set_epoch = getattr(each, "set_epoch", None)
            if set_epoch is not None:
                set_epoch(epoch)

    def _draw(self, step):
        try:
            return next(self._iterator)
        except StopIteration:
            raise ValueError(
                f"the loader gave no batch for step {step}; it must give "
                f"{self._length or 'enough'} batches each time it is begun"
            ) from None
