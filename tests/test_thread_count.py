"""The number of threads, on a machine that is played: what a step takes is a function of them."""

import pytest
import torch

from backbones.thread_count import ThreadCount


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def play(thread_count, seconds, steps):
    """Runs ``steps`` steps that take ``seconds[threads]``; gives how many ran with each number, and what was said."""
    ran, said = {}, []
    for _ in range(steps):
        threads = torch.get_num_threads()
        ran[threads] = ran.get(threads, 0) + 1
        said.append(thread_count.step(seconds[threads]))
    return ran, [line for line in said if line]


def total(seconds, ran):
    return sum(seconds[threads] * steps for threads, steps in ran.items())


@pytest.fixture
def two():
    torch.set_num_threads(2)
    return ThreadCount()


def test_all_threads_on_an_idle_machine_and_few_trials(two):
    seconds = {2: 0.27, 1: 0.40}
    ran, said = play(two, seconds, 4000)
    assert not said and torch.get_num_threads() == 2
    assert ran[1] > 0
    assert total(seconds, ran) < 1.03 * 4000 * seconds[2]


# Times of a step of `make demo-d2` on two cores, beside nothing and beside a program that keeps one core busy.
IDLE, BUSY = {2: 0.40, 1: 0.52}, {2: 8.3, 1: 0.54}


def test_a_neighbour_takes_a_thread_at_once_and_gives_it_back_when_it_goes(two):
    play(two, IDLE, 300)
    ran, said = play(two, BUSY, 1500)
    # Until it is noticed, and a step of each trial, of which each comes after 50 times the time that it takes.
    assert ran[2] <= 2 + 2 and two.count == 1
    assert total(BUSY, ran) < 2 * 1500 * IDLE[2]
    assert said == ["Threads: 1, for a step takes 0.540 s, with 2 it takes 8.300 s"]
    ran, said = play(two, IDLE, 2000)
    assert ran[2] > 1000 and torch.get_num_threads() == 2
    assert said == ["Threads: 2, for a step takes 0.400 s, with 1 it takes 0.520 s"]


def test_a_neighbour_that_comes_for_a_minute_costs_no_more_than_twice_that_minutes_steps(two):
    play(two, IDLE, 300)
    ran, seconds = {}, 0.0
    while seconds < 60:
        (threads,), _ = play(two, BUSY, 1)
        ran[threads] = ran.get(threads, 0) + 1
        seconds += BUSY[threads]
    assert seconds / sum(ran.values()) < 2 * IDLE[2]


def test_a_neighbour_that_is_there_from_the_start_is_noticed_in_the_first_steps(two):
    play(two, BUSY, ThreadCount.FIRST + ThreadCount.TRIAL)
    assert two.count == torch.get_num_threads() == 1


def test_a_neighbour_that_comes_just_after_a_trial_is_noticed_as_fast(two):
    play(two, IDLE, ThreadCount.FIRST + ThreadCount.TRIAL + 1)
    ran, _ = play(two, BUSY, 20)
    assert ran[2] == 2 and two.count == 1


def test_one_step_that_waits_is_no_neighbour(two):
    play(two, IDLE, 60)
    for _ in range(20):
        _, said = play(two, {2: 5.0, 1: 5.0}, 1)
        assert not said
        _, said = play(two, IDLE, 37)
        assert not said
    assert torch.get_num_threads() == 2


def test_steps_that_grow_longer_with_one_thread_bring_no_trial_of_two(two):
    play(two, BUSY, ThreadCount.FIRST + ThreadCount.TRIAL)
    ran, _ = play(two, {2: 8.3, 1: 1.2}, 100)
    assert ran == {1: 100}


def test_it_goes_as_far_down_as_helps():
    torch.set_num_threads(4)
    seconds = {4: 2.0, 3: 1.5, 2: 0.5, 1: 0.9}
    thread_count = ThreadCount()
    _, said = play(thread_count, seconds, 200)
    assert thread_count.count == 2 and len(said) == 2


def test_a_step_that_takes_long_for_itself_is_no_neighbour(two):
    """Larger images are slower with any number of threads: the trials are not begun over and over."""
    play(two, {2: 0.2, 1: 0.3}, 200)
    ran, said = play(two, {2: 0.6, 1: 0.9}, 400)
    assert not said and ran[1] < 40 and torch.get_num_threads() == 2


def test_one_thread_stays_one():
    torch.set_num_threads(1)
    ran, said = play(ThreadCount(), {1: 0.5}, 300)
    assert ran == {1: 300} and not said
    with pytest.raises(ValueError, match="at least 1, got 0"):
        ThreadCount(0)
