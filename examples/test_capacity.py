"""A test of what a gateway holds: here the fake one; with `base_url` and a key, your own.

Its limit is generous, as the machine of a test does other things besides.
"""

from gz_trio.simulate import Workload, run


async def test_twenty_people_chat_while_their_key_is_replaced() -> None:
    workload = Workload(
        users=20,
        turns=2,
        duration="2s",
        output_tokens=30,
        rotations=("1s",),
        slo=("latency=30s",),
        fake_token_interval="10ms",  # noqa: S106  no secret
    )
    result = await run(workload)
    assert result.good_fraction > 0.99
    assert result.refreshes == 1
    assert (result.lost, result.doubled) == (0, 0)
