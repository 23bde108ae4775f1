import asyncio
import threading

import pytest
import torch

import beft
from beft.core.attentions import stock_modules
from beft.core.sites import available_terms
from beft.errors import BankError, RouteError, SiteError, TermError
from tiny import REGULAR, TINY, batch, build

from .common import EXPERTS, WITH_SITES, close, fill, row, same_snapshot, snapshot, states

ROUTE = ["a", None, "b", "a"]


def routed(name, head="base", terms="value", **overrides):
    model = build(name, head, **overrides)
    return model, fill(beft.attach(model, terms, names=["a", "b"]))


def terms_of(model):
    return [term.name for term in available_terms(model) if term.per_layer]


# ---- rows are exact --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("terms", ["value", "all"])
@pytest.mark.parametrize("name", WITH_SITES)
def test_a_mixed_batch_equals_each_row_alone(name, terms):
    model = build(name)
    inputs = batch(name, rows=4, ragged=True)
    chosen = terms_of(model) if terms == "all" else terms
    if terms == "all" and getattr(model.config, "share_att_key", False):  # one adapter a batch at query and key
        chosen = [term for term in chosen if term not in ("query", "key")]
    with torch.no_grad():
        plain = states(model, inputs)
        bank = fill(beft.attach(model, chosen, names=["a", "b"]))
        assert torch.equal(states(model, inputs), plain), "two names: none is active"
        with bank.route(ROUTE):
            mixed = states(model, inputs)
        for number, each in enumerate(ROUTE):
            with bank.route(each):
                whole = states(model, inputs)
            with bank.route([each]):
                alone = states(model, row(inputs, number))
            close(mixed[number], whole[number])
            close(mixed[number], alone[0], 2e-6)
        assert float((mixed[0] - plain[0]).abs().max()) > 1e-2
        if name not in EXPERTS:
            assert torch.equal(mixed[1], plain[1])


@pytest.mark.parametrize("name", ["bert", "llama", "t5", "gpt2"])
def test_terms_layers_scales_and_names_differ_in_one_batch(name):
    model = build(name)
    inputs = batch(name, rows=3)
    bank = beft.attach(model, names=[])
    bank.add("one", "value", layers=0)
    bank.add("two", "output+intermediate", layers="last:1", scale=0.5)
    bank.add("dots.and/slash%", "all")
    fill(bank)
    names = bank.names
    with torch.no_grad():
        with bank.route(names):
            mixed = states(model, inputs)
        for number, each in enumerate(names):
            with bank.route(each):
                close(mixed[number], states(model, inputs)[number])
    assert len({tuple(mixed[n].flatten().tolist()) for n in range(3)}) == 3


def test_scale_multiplies():
    model, inputs = build("bert"), batch("bert")
    bank = beft.attach(model, names=["whole"])
    bank.add("half", scale=0.5)
    with torch.no_grad():
        for site, vector in bank["whole"].items():
            vector.normal_()
            bank["half"].vector(site).copy_(2 * vector)
        first = states(model, inputs)
        bank.active = "half"
        assert torch.equal(first, states(model, inputs))


@pytest.mark.parametrize("name", ["opt", "opt-350m"])
def test_flattened_feed_forward_parts_refuse_a_wrong_batch_all_the_same(name):
    model, bank = routed(name, terms="intermediate+output")
    with bank.route(["a", "b"]), pytest.raises(RouteError, match="found 4 at the model's input"):
        model(**batch(name, rows=4))


@pytest.mark.parametrize("name", ["deberta-v3", "deberta-v2-conv"])
def test_relative_positions_take_one_adapter_at_query_and_key(name):
    model, bank = routed(name, terms="query+key")
    inputs = batch(name)
    with torch.no_grad():
        with bank.route("a"):
            one = states(model, inputs)
        with bank.route(["a"]):
            close(states(model, row(inputs, 0))[0], one[0], 2e-6)
        with bank.route(["a", "b", "a"]), pytest.raises(RouteError) as caught:
            model(**inputs)
    assert "DeBERTa" in str(caught.value)
    assert "one adapter for the whole batch" in str(caught.value)


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
def test_inputs_as_embeddings(name):
    model, bank = routed(name)
    inputs = batch(name)
    embedded = {"inputs_embeds": model.get_input_embeddings()(inputs["input_ids"])}
    with torch.no_grad(), bank.route(["a", "b", None]):
        close(states(model, embedded), states(model, inputs))
    with bank.route(["a"]), pytest.raises(RouteError):
        model(**embedded)


# ---- the model stays what it is --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_SITES)
def test_attach_changes_no_output_and_detach_leaves_nothing(name):
    model = build(name)
    next(model.parameters()).requires_grad_(False)
    model.get_input_embeddings().train()
    inputs = batch(name, ragged=True)
    with torch.no_grad():
        plain = states(model, inputs)
        before = snapshot(model)
        bank = beft.attach(model, terms_of(model))
        assert torch.equal(states(model, inputs), plain)
        fill(bank)
        assert not torch.equal(states(model, inputs), plain)
        assert not any(p.requires_grad for n, p in model.named_parameters() if not n.startswith("beft."))
        assert all(p.requires_grad for p in bank.parameters("default"))
        bank.detach()
        same_snapshot(before, snapshot(model))
        assert torch.equal(states(model, inputs), plain)
    bank.detach()


@pytest.mark.parametrize("name", ["bert", "t5", "gpt2", "llama", "bart", "modernbert"])
@pytest.mark.parametrize("head", ["classify", "lm"])
def test_detach_from_headed_classes(name, head):
    model = build(name, head)
    before = snapshot(model)
    bank = fill(beft.attach(model, "all" if name != "vit" else "value", names=["a", "b"]))
    if head == "classify":
        paths = [n for n, _ in model.named_children() if n in ("classifier", "score", "classification_head")]
        bank.set_head("a", beft.ModelHead(model, paths))
    bank.detach()
    same_snapshot(before, snapshot(model))


@pytest.mark.parametrize("name", ["bert", "t5", "gpt2", "llama", "vit"])
def test_save_pretrained_writes_the_stock_files_while_attached(name, tmp_path):
    model = build(name, "classify")
    model.save_pretrained(tmp_path / "stock")
    bank = beft.attach(model)
    paths = [n for n, _ in model.named_children() if n in ("classifier", "score", "classification_head")]
    bank.set_head("default", beft.ModelHead(model, paths))
    fill(bank)
    model.save_pretrained(tmp_path / "attached")
    bank.detach()
    model.save_pretrained(tmp_path / "detached")
    files = sorted(path.name for path in (tmp_path / "stock").iterdir())
    for folder in ("attached", "detached"):
        assert files == sorted(path.name for path in (tmp_path / folder).iterdir())
        for file in files:
            assert (tmp_path / "stock" / file).read_bytes() == (tmp_path / folder / file).read_bytes(), file
    _, info = type(model).from_pretrained(tmp_path / "attached", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_stock_keys_stay_and_parameters_hang_under_beft():
    model = build("bert")
    keys = set(model.state_dict())
    bank = beft.attach(model, names=["x.y", "z"])
    assert keys < set(model.state_dict())
    own = {id(p) for n, p in model.named_parameters() if n.startswith("beft.")}
    assert own == {id(p) for _, p in bank.named_parameters()}
    assert [n for n, _ in bank.named_parameters()] == [
        f"{name}.encoder.layer.{n}.attention.self.value" for name in ("x.y", "z") for n in range(2)
    ]
    model.to(torch.float64)
    assert {p.dtype for _, p in bank.named_parameters()} == {torch.float64}
    model.to("meta")
    assert {p.device.type for _, p in bank.named_parameters()} == {"meta"}


@pytest.mark.parametrize("way", ["function", "method", "inner"])
def test_a_compiled_model_is_refused(way):
    model = build("bert")
    if way == "function":
        compiled = torch.compile(model, backend="eager")
    elif way == "method":
        model.compile(backend="eager")
        compiled = model
    else:
        model.encoder.layer[0].compile(backend="eager")
        compiled = model
    with pytest.raises(BankError, match="Attach first, then compile"):
        beft.attach(compiled)
    assert not hasattr(model, "beft")


def test_a_second_bank_is_refused_until_the_first_is_gone():
    model = build("bert")
    bank = beft.attach(model)
    with pytest.raises(BankError, match="has a bank"):
        beft.attach(model)
    bank.detach()
    with pytest.raises(BankError, match="detached"):
        bank.make_route("default")
    for call in (lambda: bank.add("x"), lambda: bank.remove("default"), lambda: bank.combine("x", {"default": 1.0})):
        with pytest.raises(BankError, match="detached"):
            call()
    beft.attach(model).detach()


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"terms": "nonsense"}, TermError),
        ({"terms": "value@cross"}, TermError),
        ({"layers": 7}, SiteError),
        ({"sites": {"value": "no.*.where"}}, SiteError),
        ({"names": ["a", "a"]}, BankError),
        ({"names": [""]}, BankError),
        ({"names": [3]}, BankError),
        ({"names": "ab"}, BankError),
    ],
)
def test_a_failing_attach_leaves_no_trace(kwargs, error):
    model = build("bert")
    model.train()
    before = snapshot(model)
    with pytest.raises(error):
        beft.attach(model, **kwargs)
    same_snapshot(before, snapshot(model))


@pytest.mark.parametrize("name", ["mamba", "longformer"])
def test_a_failing_attach_leaves_no_trace_in_odd_models(name):
    model = build(name)
    before = snapshot(model)
    with pytest.raises(SiteError):
        beft.attach(model)
    same_snapshot(before, snapshot(model))


# ---- names, adding, removing, combining ------------------------------------------------------------------------------


def test_routes_that_do_not_fit():
    model, bank = routed("bert")
    for names in (["a"], ["a", "b"], ["a"] * 4):
        with bank.route(names), pytest.raises(RouteError, match=f"route over {len(names)} rows.*found 3"):
            model(**batch("bert"))
    with pytest.raises(RouteError), bank.route([]):
        pass
    bank.add("english")
    with pytest.raises(RouteError, match="Did you mean 'english'"), bank.route(["a", "englsh"]):
        pass
    with pytest.raises(RouteError, match="Did you mean 'english'"):
        bank.active = "Englih"
    for call in (bank.remove, bank.parameters, lambda n: bank.combine("x", {n: 1.0}), lambda n: bank.set_head(n, None)):
        with pytest.raises(RouteError, match="Did you mean 'english'"):
            call("englisch")


def test_arguments_of_another_kind():
    with pytest.raises(BankError, match="expected a transformers model, found a value of type str"):
        beft.attach("bert")
    _, bank = routed("bert")
    with pytest.raises(RouteError, match="route 3: expected a name, None, or one name a row, found int"):
        bank.make_route(3)
    with pytest.raises(RouteError, match="a name in the bank"):
        bank.active = ["a"]
    with pytest.raises(SiteError, match=r"layers=1\.5: expected whole numbers, or text, found float"):
        bank.add("c", layers=1.5)
    for number in (float("nan"), float("inf"), "2", None):
        with pytest.raises(BankError, match="scale of 'c': expected a finite number"):
            bank.add("c", scale=number)
        with pytest.raises(BankError, match="expected a finite number"):
            bank.combine("c", {"a": 0.5, "b": number})
    with pytest.raises(BankError, match="a weight for each name"):
        bank.combine("c", ["a", "b"])
    assert bank.names == ["a", "b"]
    bank.detach()
    with pytest.raises(BankError, match="a detached one"):
        bank.active = "a"


def test_active_and_nested_routes():
    model, bank = routed("bert")
    inputs = batch("bert")

    def out():
        with torch.no_grad():
            return states(model, inputs)

    assert bank.active is None
    plain = out()
    bank.active = "a"
    a = out()
    with bank.route("b"):
        b = out()
        with bank.route(None):
            assert torch.equal(out(), plain)
        assert torch.equal(out(), b)
        with pytest.raises(ZeroDivisionError), bank.route("a"):
            raise ZeroDivisionError
        assert torch.equal(out(), b)
    assert torch.equal(out(), a)
    bank.active = None
    assert torch.equal(out(), plain)
    assert not torch.equal(a, b)


def test_add_and_remove():
    model, bank = routed("bert")
    inputs = batch("bert")
    bank.active = "a"
    with torch.no_grad():
        before = states(model, inputs)
        bank.add("c", "output", layers=1)
        assert torch.equal(states(model, inputs), before)
        assert bank.names == ["a", "b", "c"]
        assert len(bank) == 3
        assert "c" in bank
        assert [s.module for s in bank["c"].sites] == ["encoder.layer.1.output.dense"]
        hooks = len(model.encoder.layer[1].output.dense._forward_hooks)
        bank.remove("c")
        assert len(model.encoder.layer[1].output.dense._forward_hooks) == hooks - 1 == 0
        bank.remove("b")
        assert torch.equal(states(model, inputs), before)
        bank.remove("a")
    assert bank.active is None
    assert bank.names == []
    assert not any(m._forward_hooks for m in model.modules())
    with pytest.raises(RouteError, match="Add or load one first"):
        bank["a"]


def test_an_adapter_stays_while_a_route_uses_it():
    model, bank = routed("bert")
    inputs = batch("bert")
    for names in ("a", ["a", None, "b"]):
        with torch.no_grad(), bank.route(names):
            before = states(model, inputs)
            with pytest.raises(BankError, match=r"remove\('a'\): expected no route in force that uses it"):
                bank.remove("a")
            assert torch.equal(states(model, inputs), before)
    with bank.route("b"):
        bank.remove("a")
    assert bank.names == ["b"]


def test_add_defaults_to_where_the_bank_was_attached():
    bank = beft.attach(build("bert"), "query", layers=1)
    assert [(s.term.name, s.layer) for s in bank.add("b").sites] == [("query", 1)]
    assert [(s.term.name, s.layer) for s in bank.add("c", layers=0).sites] == [("query", 0)]
    assert [(s.term.name, s.layer) for s in bank.add("d", "value").sites] == [("value", 0), ("value", 1)]
    with pytest.raises(BankError, match="new name"):
        bank.add("b")


def test_a_failing_add_changes_nothing():
    model, bank = routed("bert")
    keys = list(model.state_dict())
    with pytest.raises(TermError):
        bank.add("c", "nonsense")
    with pytest.raises(BankError):
        bank.add("a")
    assert bank.names == ["a", "b"]
    assert keys == list(model.state_dict())


def test_combine_is_the_weighted_sum():
    model = build("bert")
    bank = beft.attach(model, names=["a"])
    bank.add("b", "value+output", scale=2.0)
    fill(bank)
    bank.combine("ab", {"a": 0.25, "b": -0.5})
    for site, vector in bank["ab"].items():
        want = -0.5 * 2.0 * bank["b"].vector(site)
        if site.term.name == "value":
            want = want + 0.25 * bank["a"].vector(site)
        close(vector, want)
    with torch.no_grad(), bank.route(["a", "b", "ab"]):
        states(model, batch("bert"))
    with pytest.raises(BankError, match="at least one part"):
        bank.combine("none", {})
    with pytest.raises(BankError, match="new name"):
        bank.combine("ab", {"a": 1.0})


# ---- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REGULAR)
def test_each_adapter_gets_the_gradient_it_gets_alone(name):
    model, bank = routed(name)
    bank.add("idle")
    inputs = batch(name, rows=4)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(4, generator=generator)
    target = torch.randn(states(model, inputs).shape[1:], generator=generator)

    def loss(route, given, chosen):
        with bank.route(route):
            out = states(model, given)
        return ((out * target).flatten(1).sum(1) * chosen).sum()

    loss(ROUTE, inputs, weights).backward()
    mixed = {key: p.grad for key, p in bank.named_parameters()}
    assert all(mixed[key] is None for key in mixed if key.startswith("idle."))
    assert not any(p.grad is not None for n, p in model.named_parameters() if not n.startswith("beft."))
    for each in ("a", "b"):
        rows = [n for n, chosen in enumerate(ROUTE) if chosen == each]
        leaves = bank.parameters(each)
        alone = torch.autograd.grad(
            sum(loss(each, row(inputs, n), weights[n : n + 1]) for n in rows), leaves, materialize_grads=True
        )
        got = [mixed[key] for key in mixed if key.startswith(f"{each}.")]
        for have, want in zip(got, alone, strict=True):
            close(have, want, 2e-6)
        assert max(float(want.abs().max()) for want in alone) > 1e-3


# ---- threads and tasks -----------------------------------------------------------------------------------------------


def test_two_threads_do_not_mix():
    model, bank = routed("bert")
    inputs = batch("bert")
    want = {}
    for each in ("a", "b"):
        with torch.no_grad(), bank.route(each):
            want[each] = states(model, inputs)
    barrier, faults = threading.Barrier(2), []

    def work(each, route):
        with torch.no_grad(), bank.route(route):
            for _ in range(20):
                barrier.wait()
                if not torch.equal(states(model, inputs), want[each]):
                    faults.append(each)

    threads = [threading.Thread(target=work, args=args) for args in (("a", "a"), ("b", ["b"] * 3))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


def test_asynchronous_tasks_do_not_mix():
    model, bank = routed("bert")
    inputs = batch("bert")

    async def work(each):
        with bank.route(each):
            outputs = []
            for _ in range(3):
                await asyncio.sleep(0)
                with torch.no_grad():
                    outputs.append(states(model, inputs))
        return outputs

    async def both():
        return await asyncio.gather(work("a"), work(["b", "b", "b"]), work(None))

    a, b, plain = asyncio.run(both())
    with torch.no_grad():
        assert torch.equal(plain[0], states(model, inputs))
        with bank.route("a"):
            assert torch.equal(a[0], states(model, inputs))
    for outputs in (a, b, plain):
        assert all(torch.equal(outputs[0], each) for each in outputs)
    assert not torch.equal(a[0], b[0])


def test_two_banks_on_two_models_have_routes_of_their_own():
    first, one = routed("bert")
    second, two = routed("llama")
    with torch.no_grad(), one.route(["a", "b"]):
        states(second, batch("llama"))
        with two.route("a"):
            states(first, batch("bert", rows=2))
        with pytest.raises(RouteError):
            states(first, batch("bert"))


# ---- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "t5"])
def test_vectors_are_fp32_whatever_the_base_is(name, dtype):
    model = build(name).to(dtype)
    inputs = batch(name)
    bank = fill(beft.attach(model, names=["a", "b"]))
    plain = states(model, inputs)
    assert {p.dtype for p in bank.parameters("a")} == {torch.float32}
    with bank.route(["a", None, "b"]):
        mixed = states(model, inputs)
    assert mixed.dtype == plain.dtype == dtype
    assert torch.equal(mixed[1], plain[1])
    with bank.route("a"):
        assert torch.equal(states(model, inputs)[0], mixed[0])
    mixed.float().pow(2).sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in bank.parameters("a"))


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "t5", "modernbert"])
def test_autocast(name):
    model = build(name)
    inputs = batch(name)
    with torch.autocast("cpu", torch.bfloat16):
        bank = fill(beft.attach(model, "all", names=["a", "b"]))
        plain = states(model, inputs)
        with bank.route(["a", None, "b"]):
            mixed = states(model, inputs)
        with bank.route("a"):
            one = states(model, inputs)
    assert mixed.dtype == one.dtype == plain.dtype
    assert torch.equal(mixed[1], plain[1])
    assert torch.equal(mixed[0], one[0])
    mixed.float().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in bank.parameters("a"))


# ---- heads -----------------------------------------------------------------------------------------------------------


def linear(outputs, pooling="mean"):
    labels = None if outputs == 1 else [str(n) for n in range(outputs)]
    return beft.LinearHead(32, outputs, labels, pooling)


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "t5", "vit", "opt"])
@pytest.mark.parametrize("head", ["base", "classify"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_linear_heads_of_different_sizes(name, head, pooling):
    model = build(name, head)
    bank = beft.attach(model, names=[])
    bank.add("two", head=linear(2, pooling))
    bank.add("three", head=linear(3, pooling))
    bank.add("one", head=linear(1, pooling))
    fill(bank)
    inputs = batch(name, ragged=True)
    with bank.route(["three", "two", "one"]):
        logits = bank.logits(**inputs)
    assert logits.shape == (3, 3)
    assert logits.dtype == torch.float32
    assert torch.isinf(logits).tolist() == [[False] * 3, [False, False, True], [False, True, True]]
    assert (logits[torch.isinf(logits)] < 0).all()
    for number, each in enumerate(["three", "two", "one"]):
        with bank.route(each):
            whole = bank.logits(**inputs)
            alone = bank.logits(**row(inputs, number))
        close(logits[number, : whole.shape[1]], whole[number])
        close(logits[number, : whole.shape[1]], alone[0], 2e-6)
    logits[torch.isfinite(logits)].pow(2).sum().backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().max() > 0 for _, p in bank.named_parameters())


def test_pooling_by_hand():
    model = build("bert")
    bank = beft.attach(model, names=["mean", "last"])
    bank.set_head("mean", linear(2))
    bank.set_head("last", linear(2, "last"))
    fill(bank)
    inputs = batch("bert", ragged=True)
    with torch.no_grad():
        for each in ("mean", "last"):
            with bank.route(each):
                hidden, logits = states(model, inputs), bank.logits(**inputs)
            for number, length in enumerate(inputs["attention_mask"].sum(1).tolist()):
                pooled = hidden[number, :length].mean(0) if each == "mean" else hidden[number, length - 1]
                head = bank[each].head
                close(logits[number], pooled @ head.weight.T + head.bias)
        left = {key: value.flip(1) for key, value in inputs.items()}
        with bank.route("last"):
            hidden, logits = states(model, left), bank.logits(**left)
        close(logits, hidden[:, -1] @ bank["last"].head.weight.T + bank["last"].head.bias)


def test_logits_need_heads_of_one_kind():
    model = build("bert", "classify")
    bank = beft.attach(model, names=["bare", "linear", "model"])
    bank.set_head("linear", linear(2))
    bank.set_head("model", beft.ModelHead(model, ["classifier"]))
    inputs = batch("bert", rows=2)
    for route in ("bare", None, ["linear", None], ["linear", "bare"], ["linear", "model"], ["model", "linear"]):
        with bank.route(route), pytest.raises(BankError):
            bank.logits(**inputs)


HEADS = {
    "bert": "classifier",
    "roberta": "classifier",
    "llama": "score",
    "t5": "classification_head",
    "vit": "classifier",
}


def resized(model, path, labels):
    """A model head with another number of labels."""
    head = beft.ModelHead(model, [path])
    last = [m for m in head.modules() if isinstance(m, torch.nn.Linear)][-1]
    last.weight = torch.nn.Parameter(torch.zeros(labels, last.in_features))
    last.out_features = labels
    if last.bias is not None:
        last.bias = torch.nn.Parameter(torch.zeros(labels))
    return head


@pytest.mark.parametrize("name", list(HEADS))
def test_model_heads(name):
    model = build(name, "classify")
    inputs = batch(name, rows=4, ragged=True)
    with torch.no_grad():
        plain = states(model, inputs)
    bank = beft.attach(model, names=["a", "b", "c"])
    bank.set_head("a", beft.ModelHead(model, [HEADS[name]]))
    bank.set_head("b", resized(model, HEADS[name], 5))
    with torch.no_grad(), bank.route("a"):
        assert torch.equal(states(model, inputs), plain), "a copy gives what the original gives"
    fill(bank)
    names = ["b", "a", None, "c"]
    with bank.route(names):
        logits = states(model, inputs)
    assert logits.shape == (4, 5)
    assert torch.isinf(logits).sum(1).tolist() == [0, 2, 2, 2]
    close(logits[2, :3], plain[2])
    for number, each in enumerate(names):
        with bank.route(each):
            alone = states(model, row(inputs, number))
        close(logits[number, : alone.shape[1]], alone[0], 2e-6)
    with bank.route(["a", "b", "a", "b"]):
        close(bank.logits(**inputs)[0, :3], states(model, inputs)[0, :3])
    loss = logits[torch.isfinite(logits)].pow(2).sum()
    loss.backward()
    assert all(p.grad is not None for each in ("a", "b", "c") for p in bank.parameters(each))
    assert not any(p.grad is not None for n, p in model.named_parameters() if not n.startswith("beft."))


def test_labels_with_heads_of_different_sizes_are_refused():
    model = build("bert", "classify")
    inputs = batch("bert", rows=2)
    bank = beft.attach(model, names=["a", "b"])
    bank.set_head("a", beft.ModelHead(model, ["classifier"]))
    bank.set_head("b", resized(model, "classifier", 5))
    labels = torch.tensor([0, 1])
    with bank.route(["a", "b"]), pytest.raises(RouteError, match=r"labels=: .*heads of \[3, 5\] labels"):
        model(**inputs, labels=labels)
    with bank.route(["a", "a"]):
        output = model(**inputs, labels=labels)
    close(output.loss, torch.nn.functional.cross_entropy(output.logits, labels))


def test_replacing_and_removing_heads():
    model = build("bert", "classify")
    inputs = batch("bert")
    with torch.no_grad():
        plain = states(model, inputs)
        bank = beft.attach(model, names=["a", "b"])
        for each in ("a", "b"):
            bank.set_head(each, beft.ModelHead(model, ["classifier"]))
        fill(bank)
        assert len(model.classifier._forward_hooks) == 1
        bank.set_head("a", None)
        assert len(model.classifier._forward_hooks) == 1
        bank.set_head("b", linear(2))
        assert len(model.classifier._forward_hooks) == 0
        bank.active = None
        assert torch.equal(states(model, inputs), plain)
        bank.set_head("b", beft.ModelHead(model, ["classifier"]))
        bank.remove("b")
        assert len(model.classifier._forward_hooks) == 0


def test_what_is_not_saved_follows_every_change_and_the_stock_modules_none():
    model = build("bert", "classify")
    modules = dict(model.named_modules())
    bank = beft.attach(model, names=["a", "b"])

    def unsaved():
        assert list(stock_modules(model).items()) == list(modules.items())
        own = {key for key in model.state_dict() if key.startswith("beft.")}
        assert {key for key in model._keys_to_ignore_on_save if key.startswith("beft.")} == own
        return len(own)

    counts = [unsaved()]
    for change in (
        lambda: bank.set_head("a", linear(2)),
        lambda: bank.set_head("a", beft.ModelHead(model, ["classifier"])),
        lambda: bank.add("c", "query+key"),
        lambda: bank.combine("d", {"b": 0.5, "c": 0.5}),
        lambda: bank.set_head("a", None),
        lambda: [bank.remove(name) for name in "abcd"],
    ):
        change()
        counts.append(unsaved())
    layers = model.config.num_hidden_layers
    assert counts[0] == 2 * layers
    assert counts[3:] == [counts[2] + 2 * layers, counts[2] + 5 * layers, 7 * layers, 0]


def test_model_head_of_a_place_that_is_not_there():
    with pytest.raises(SiteError, match="classifier"):
        beft.ModelHead(build("bert"), ["classifier"])


def test_model_head_in_half_precision_trains_in_fp32():
    model = build("bert", "classify").to(torch.bfloat16)
    bank = beft.attach(model, names=["a"])
    bank.set_head("a", beft.ModelHead(model, ["classifier"]))
    with bank.route(["a", None, "a"]):
        logits = bank.model(**batch("bert")).logits
    logits.float().sum().backward()
    assert {p.dtype for p in bank.parameters("a")} == {torch.float32}
    assert all(p.grad is not None for p in bank.parameters("a"))


def test_combining_one_term_on_different_features():
    bank = beft.attach(build("gpt2"), names=[])
    bank.add("a", sites={"value": "*.c_attn[64:80]"}, terms="value")
    bank.add("b", sites={"value": "*.c_attn[80:96]"}, terms="value")
    with pytest.raises(BankError, match=r"the features \[\(64, 80\)\] of h.0.attn.c_attn, found \[\(80, 96\)\] in 'b'"):
        bank.combine("ab", {"a": 1.0, "b": 1.0})


def test_combining_heads():
    model = build("bert")
    bank = beft.attach(model, names=["a", "b", "c", "bare"])
    for each in ("a", "b"):
        bank.set_head(each, linear(2))
    bank.set_head("c", linear(3))
    fill(bank)
    bank.combine("ab", {"a": 0.5, "b": 0.5})
    close(bank["ab"].head.weight, (bank["a"].head.weight + bank["b"].head.weight) / 2)
    bank.combine("a+bare", {"a": 0.5, "bare": 0.5})
    assert torch.equal(bank["a+bare"].head.weight, bank["a"].head.weight)
    with pytest.raises(BankError, match="heads of one shape"):
        bank.combine("ac", {"a": 0.5, "c": 0.5})


def test_combining_regressions_with_offset_and_spread():
    model = build("bert")
    bank = beft.attach(model, names=["a", "b"])
    for number, each in enumerate(bank.names):
        bank.set_head(each, linear(1))
        bank[each].head.offset.fill_(number + 1.0)
        bank[each].head.spread.fill_(number + 2.0)
    fill(bank)
    bank.combine("ab", {"a": 0.25, "b": 0.75})
    pooled = torch.randn(4, 32)
    want = 0.25 * bank["a"].head(pooled) + 0.75 * bank["b"].head(pooled)
    close(bank["ab"].head(pooled), want)


def test_every_family_of_the_table_is_covered():
    assert {*WITH_SITES, "mamba", "xlnet", "convnext", "longformer"} == set(TINY)


@pytest.mark.parametrize("name", ["half", "keys", "training", "a.b", "%", "%2E", "vectors", "ä/ö", "0"])
def test_any_text_is_a_name(name):
    model = build("bert")
    bank = beft.attach(model, names=[name, "other"])
    with torch.no_grad(), bank.route(name):
        states(model, batch("bert"))
    assert any(key.startswith("beft.") for key in model.state_dict())
    bank.remove(name)
    assert bank.names == ["other"]
