"""The answers of the lists to the queries of an inquiry, from the cache or awaited."""

from __future__ import annotations

from .inquiry import Inquiry

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from smtpd_filters.lookups.dns import Resolver
    from smtpd_filters.lookups.outcome import Outcome

    from .lists import Watch
    from .questions import Question
    from .score import Thresholds


class Answers:
    """Queries the lists; an odd answer makes `watch` test them again."""

    def __init__(self, dns: Resolver, watch: Watch, thresholds: Thresholds) -> None:
        self._dns = dns
        self._watch = watch
        self._thresholds = thresholds

    def cached(self, questions: Sequence[Question]) -> Inquiry:
        """Return an inquiry with the cached answers."""
        inquiry = Inquiry(questions, self._thresholds)
        for question in list(inquiry.pending):
            outcome = self._dns.known(question.name, "A")
            if outcome is not None:
                self._take(inquiry, question, outcome)
        return inquiry

    async def enough(self, questions: Sequence[Question]) -> Inquiry:
        """Return an inquiry whose level no pending answer can change."""
        inquiry = self.cached(questions)
        if not inquiry.finished:
            await self.wait(inquiry, early=True)
        return inquiry

    async def wait(self, inquiry: Inquiry, *, early: bool = False) -> None:
        """Wait for the pending answers, with `early` only for those that matter."""
        import asyncio

        waiting: dict[asyncio.Future[Outcome[str]], Question] = {
            asyncio.ensure_future(self._dns.query(question.name, "A")): question
            for question in inquiry.pending
        }
        try:
            while waiting and not (early and inquiry.finished):
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for answered in done:
                    self._take(inquiry, waiting.pop(answered), answered.result())
        finally:
            # The look-ups themselves continue, for the cache.
            for future in waiting:
                future.cancel()

    def _take(self, inquiry: Inquiry, question: Question, outcome: Outcome[str]) -> None:
        if inquiry.take(question, outcome).odd:
            self._watch.suspect()
