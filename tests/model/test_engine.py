"""Engines: what every one promises, and what is refused."""

import sys

import pytest

from pennyweight.core import RecipeError, UnknownNameError, UnsupportedError
from pennyweight.model.engine import Engine, Local, make_engine, threads_of
from pennyweight.model.engine_ray import RayEngine
from tests.engines import Sent


def test_local_is_in_order_and_as_late_as_can_be():
    seen = []
    found = Local().map(lambda item: seen.append(item) or -item, [3, 1, 2])
    assert next(found) == -3 and seen == [3]
    assert list(found) == [-1, -2] and seen == [3, 1, 2]


@pytest.mark.parametrize("engine", [Local(), Sent(), RayEngine()])
def test_each_is_an_engine(engine):
    assert isinstance(engine, Engine)
    assert list(engine.map(abs, [])) == []
    engine.close()


def test_threads_are_of_each_process():
    assert threads_of(Local(), None) is None and threads_of(Sent(), None) == 1
    assert threads_of(Local(), 3) == threads_of(Sent(), 3) == 3


def test_what_is_made_of_options():
    made = make_engine("ray", address="auto", workers=3)
    assert isinstance(made, RayEngine) and (made.address, made.workers) == ("auto", 3)
    assert isinstance(make_engine("local"), Local)
    with pytest.raises(UnknownNameError, match="'cloud'; known: local, ray"):
        make_engine("cloud")


@pytest.mark.parametrize("options", [{"address": "auto"}, {"workers": 2}])
def test_options_of_ray_without_ray(options):
    with pytest.raises(RecipeError, match="the engine is local; add --engine ray"):
        make_engine("local", **options)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:many"])
def test_a_cluster_that_is_not_there(address):
    """Found out at once; Ray alone tries for 14 minutes."""
    pytest.importorskip("ray", reason="needs the extra `ray`")
    with pytest.raises(UnsupportedError, match=rf"no cluster at {address} \(.*leave --address out"):
        list(make_engine("ray", address=address).map(abs, [1]))


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UnsupportedError, match=r"pennyweight\[ray\]"):
        list(make_engine("ray").map(abs, [1]))
