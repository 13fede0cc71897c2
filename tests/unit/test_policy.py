"""What is done about a start that can hang: the policies, their layers, and the place that is told."""

import sys
import warnings

import pytest

from safespawn import _policy, _watch, guard
from safespawn.errors import BadArgument, BadArgumentType, UnsafeStart, UnsafeStartWarning


@pytest.fixture(autouse=True)
def _boot(monkeypatch):
    """No layer, and nothing told before."""
    monkeypatch.setattr(_policy, "layers", [])
    monkeypatch.setattr(_policy, "_told", {})


def lay(setting, allow=()):
    """Put a layer down."""
    layer = _policy.make_layer(setting, allow)
    _policy.layers.append(layer)
    return layer


@pytest.mark.parametrize("policy", ["error", "warn", "off"])
def test_one_policy_is_for_all_kinds(policy):
    """A single word counts for every kind."""
    assert _policy.resolve(policy) == dict.fromkeys(_policy.KINDS, policy)


def test_a_mapping_is_by_kind():
    """Kinds that are not named are off."""
    assert _policy.resolve({"fork": "error"}) == {**dict.fromkeys(_policy.KINDS, "off"), "fork": "error"}


@pytest.mark.parametrize("setting", ["loud", None, 3, {"fork": "loud"}, {"spoon": "warn"}, {"": "warn"}])
def test_a_bad_setting_is_refused(setting):
    """The error names what may be given."""
    with pytest.raises(BadArgument, match=r"'warn'|'preexec'"):
        _policy.resolve(setting)


@pytest.mark.parametrize("allow", ["gunicorn", b"x", [3], 5, None])
def test_a_bad_allow_is_refused(allow):
    """It is a sequence of names, not one."""
    with pytest.raises(BadArgumentType, match="allow"):
        _policy.make_layer("warn", allow)


def test_in_the_boot_phase_nothing_is_met():
    """Without a layer a fork is nobody's business."""
    _policy.meet("fork", "os.fork()")
    assert guard.phase() == "boot"
    assert set(guard.policies().values()) == {"off"}


def test_error_has_the_facts():
    """The error has what, kind and place; the text has the danger and the cure."""
    lay("error")
    with pytest.raises(UnsafeStart) as caught:
        _policy.meet("fork", "os.fork()")
    line = sys._getframe().f_lineno - 1
    error = caught.value
    assert (error.what, error.kind, error.place) == ("os.fork()", "fork", (__file__, line))
    assert f"{__file__}:{line}" in str(error)
    assert "every lock" in str(error)
    assert "safespawn.Process" in str(error)
    assert guard.phase() == "running"


def test_the_last_layer_counts_until_it_ends():
    """A layer above replaces the one below, and gives way to it again."""
    below = lay("off")
    above = lay({"fork": "error"})
    with pytest.raises(UnsafeStart):
        _policy.meet("fork", "os.fork()")
    _policy.meet("shell", "os.system('x')")
    _watch.end(above)
    _watch.end(above)
    _policy.meet("fork", "os.fork()")
    assert _policy.layers == [below]


def test_who_is_allowed_is_not_met():
    """A pattern that fits the module of the place lets it pass; another one does not."""
    name = __name__
    lay("error", allow=[name[:-2] + "*"])
    _policy.meet("fork", "os.fork()")
    lay("error", allow=["somebody.else"])
    with pytest.raises(UnsafeStart):
        _policy.meet("fork", "os.fork()")


def fork_here():
    """One place."""
    _policy.meet("fork", "os.fork()")


def test_a_warning_comes_once_per_place():
    """Under the default filter the same line warns once, another one again; "always" has each."""
    lay("warn")
    globals().pop("__warningregistry__", None)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        fork_here()
        fork_here()
        assert len(seen) == 1
        assert seen[0].category is UnsafeStartWarning
        assert (seen[0].filename, seen[0].lineno) == (__file__, fork_here.__code__.co_firstlineno + 2)
        _policy.meet("fork", "os.fork()")
        assert len(seen) == 2
        warnings.simplefilter("always")
        fork_here()
        assert len(seen) == 3


def test_a_warning_can_be_an_error():
    """Under the filter "error" each call raises."""
    lay("warn")
    for _ in range(2):
        with pytest.raises(UnsafeStartWarning, match=r"os\.fork"):
            fork_here()


ODD = ("safespawn.Pool", "safespawn.Process", "os.system", "subprocess.Popen", "os.fork")


@pytest.mark.parametrize("event", ODD)
@pytest.mark.parametrize("name", [3, ["x"], None])
def test_what_is_odd_does_not_make_a_start_fail(event, name, monkeypatch):
    """Events without arguments, from a module with an odd name, pass the watching hook; "warn" raises nothing."""
    lay("warn")
    seen = []
    monkeypatch.setattr(sys, "audit", lambda kind, *args: seen.append(_watch._hook(kind, args)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec("import sys; sys.audit(event)", {"event": event, "__name__": name})
    assert seen == [None]


def test_imports_are_told_from_the_inside_out(tmp_path, monkeypatch):
    """The modules that are being imported are named with the line that imports each."""
    (tmp_path / "outer_of_two.py").write_text("x = 1\nimport inner_of_two\n")
    source = "import sys\nfrom safespawn import _watch\nfound = _watch.imports(sys._getframe())\n"
    (tmp_path / "inner_of_two.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    import inner_of_two  # type: ignore[import-not-found]

    assert [each.partition(" ")[0] for each in inner_of_two.found] == ["inner_of_two"]
    del sys.modules["inner_of_two"]
    import outer_of_two  # type: ignore[import-not-found]

    found = outer_of_two.inner_of_two.found
    assert found[0] == f"inner_of_two ({tmp_path}/outer_of_two.py:2)"
    assert found[1].startswith(f"outer_of_two ({__file__}:")
    assert _watch.imports(sys._getframe()) == []
