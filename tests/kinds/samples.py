"""What is a sample? Lists, packed sequences, graphs, mappings, dataclasses, other axes."""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass
from typing import NamedTuple

import torch
from builders import mlp
from kinds.case import Case, by_differences
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader, TensorDataset

COUNT = "cannot be counted"
APART = "told apart"


class Tagger(nn.Module):
    """A list of sequences of different lengths in, a list of logits out."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, sequences):
        return [self.head(s) for s in sequences]


def _sequences(*lengths):
    return (
        [3 * torch.randn(n, 3) for n in lengths],
        [torch.randint(2, (n,)) for n in lengths],
    )


def _mean_of_lists(outputs, targets):
    losses = [F.cross_entropy(f, y) for f, y in zip(outputs, targets, strict=True)]
    return torch.stack(losses).mean()


def _num_targets(batch):
    return len(batch[1])


NO_TENSOR = {"G": "returns a list", "R": "returns a list", "exact H": "returns a list"}


def lists_of_sequences():
    batches = [_sequences(2, 9, 9), _sequences(8)]
    return Case(Tagger(), _mean_of_lists, batches, refused=f"{COUNT}.*weight=")


def lists_of_sequences_with_their_weights():
    batches = [_sequences(2, 9, 9), _sequences(8)]
    return Case(Tagger(), _mean_of_lists, batches, {"weight": _num_targets}, refuses=NO_TENSOR)


def list_of_sequences_alone():
    return Case(Tagger(), _mean_of_lists, [_sequences(2, 9, 9)], refuses=NO_TENSOR, says=COUNT)


class Recurrent(nn.Module):
    """Classes from the last state of a recurrent layer, for packed sequences."""

    def __init__(self):
        super().__init__()
        self.body = nn.RNN(3, 2)
        self.head = nn.Linear(2, 2)

    def forward(self, packed):
        return self.head(self.body(packed)[1][0])


def _packed(*lengths):
    packed = pack_sequence([torch.randn(n, 3) for n in lengths])
    return packed, torch.randint(2, (len(lengths),))


SMOOTH = {"exact H": "tr H may not be tr G"}


def packed_sequences():
    return Case(Recurrent(), F.cross_entropy, [_packed(4, 2, 1), _packed(3)], refused=COUNT)


def packed_sequences_with_their_weights():
    batches = [_packed(4, 2, 1), _packed(3)]
    assert isinstance(batches[0][0], PackedSequence)
    return Case(
        Recurrent(),
        F.cross_entropy,
        batches,
        {"weight": _num_targets},
        right=by_differences,
        right_ggn=_ggn_of_packed,
        refuses=SMOOTH,
        tolerance=1e-6,
    )


def _ggn_of_packed(case):
    """J by differences of the outputs, S of a softmax in closed form."""
    found = {}
    total = sum(len(y) for _, y in case.batches)
    for packed, y in case.batches:
        f = case.model(packed).detach()
        p = f.softmax(1)
        S = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        for name, parameter in case.model.named_parameters():
            layer = name.rpartition(".")[0]
            for i in range(parameter.numel()):
                J = _slope_of_outputs(case.model, packed, parameter, i)
                share = len(y) / total / len(y)
                found[layer] = found.get(layer, 0.0) + share * float(
                    torch.einsum("nc,ncd,nd->", J, S, J)
                )
    return found


def _slope_of_outputs(model, inputs, parameter, i, step=1e-3):
    flat = parameter.detach().view(-1)
    here = float(flat[i])
    made = {}
    for k in (-2, -1, 1, 2):
        flat[i] = here + k * step
        with torch.no_grad():
            made[k] = model(inputs)
    flat[i] = here
    return (made[-2] - 8 * made[-1] + 8 * made[1] - made[2]) / (12 * step)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 4)
        self.b = nn.Linear(4, 2)

    def forward(self, ids, mask):
        return self.b(torch.relu(self.a(ids)) * mask)


def _keywords(number):
    inputs = UserDict(ids=torch.randn(number, 3), mask=torch.rand(number, 1))
    return inputs, torch.randint(2, (number,))


def mapping_of_a_tokenizer():
    return Case(TwoInputs(), F.cross_entropy, [_keywords(6), _keywords(3)])


@dataclass
class Record:
    x: torch.Tensor
    scale: torch.Tensor


class TakesARecord(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))

    def forward(self, record):
        return self.net(record.x * record.scale)


def _record(number, kind=Record):
    return kind(torch.randn(number, 3), torch.rand(number, 1)), torch.randint(2, (number,))


def dataclass_as_input():
    return Case(TakesARecord(), F.cross_entropy, [_record(6), _record(3)], refused=COUNT)


def dataclass_as_input_with_weights():
    return Case(TakesARecord(), F.cross_entropy, [_record(6), _record(3)], {"weight": _num_targets})


class Named(NamedTuple):
    x: torch.Tensor
    scale: torch.Tensor


def namedtuple_as_input():
    return Case(TakesARecord(), F.cross_entropy, [_record(6, Named), _record(3, Named)])


def nested_tensor_as_input():
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, x):
            return torch.stack([self.head(part).mean(0) for part in x.unbind()])

    parts = [torch.randn(n, 3) for n in (4, 2, 5)]
    x = torch.nested.nested_tensor(parts, layout=torch.jagged)
    y = torch.randint(2, (3,))

    def plain():
        class OfList(nn.Module):
            def __init__(self, head):
                super().__init__()
                self.head = head

            def forward(self, *parts):
                return torch.stack([self.head(part).mean(0) for part in parts])

        return Case(OfList(case.model.head), F.cross_entropy, [(tuple(parts), y)])

    case = Case(
        Nested(),
        F.cross_entropy,
        [(x, y)],
        {"weight": _num_targets},
        right=lambda _: plain().traces(),
        right_ggn=lambda _: plain().ggn_traces(),
    )
    return case


class Neighbours(nn.Module):
    """A graph network of two layers that adds up over edges."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 4)
        self.b = nn.Linear(4, 2)

    def forward(self, x, edges):
        def mix(z):
            return z + torch.zeros_like(z).index_add(0, edges[1], z[edges[0]])

        return mix(self.b(torch.relu(mix(self.a(x)))))


def _graph(nodes=10):
    return (torch.randn(nodes, 3), torch.randint(nodes, (2, 24))), torch.randint(2, (nodes,))


def graph_of_nodes_and_edges():
    return Case(
        Neighbours(),
        F.cross_entropy,
        [_graph()],
        says=COUNT,
    )


def graphs_without_weights():
    return Case(Neighbours(), F.cross_entropy, [_graph(), _graph(6)], refused=f"{COUNT}.*weight=")


def graphs_with_labelled_nodes():
    """A mask in the targets says which nodes count."""

    def loss(outputs, targets):
        y, mask = targets
        return F.cross_entropy(outputs[mask], y[mask])

    def batch(nodes):
        inputs, y = _graph(nodes)
        return inputs, (y, torch.arange(nodes) % 3 != 0)

    return Case(
        Neighbours(),
        loss,
        [batch(10), batch(6)],
        {"weight": lambda batch: int(batch[1][1].sum())},
        shares=[6, 4],
    )


class Query(nn.Module):
    """A sequence of tokens that all queries of another length look into."""

    def __init__(self):
        super().__init__()
        self.key = nn.Linear(3, 2)
        self.head = nn.Linear(2, 2)

    def forward(self, queries, tokens):
        z = self.key(tokens)
        return self.head((queries @ z.mT).softmax(-1) @ z)


def several_inputs_of_other_lengths():
    inputs = (torch.randn(6, 2), torch.randn(4, 3))
    return Case(
        Query(),
        F.cross_entropy,
        [(inputs, torch.randint(2, (6,)))],
        {"weight": _num_targets},
        refuses=SMOOTH,
    )


class TimeFirst(nn.Module):
    """Samples lie along axis 1 of the inputs."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.relu(self.body(x)).mean(0))


def _time_first(number):
    return torch.randn(5, number, 3), torch.randint(2, (number,))


def samples_along_axis_1():
    return Case(TimeFirst(), F.cross_entropy, [_time_first(6)], refused="5 inputs but 6 targets")


def samples_along_axis_1_with_weights():
    return Case(
        TimeFirst(),
        F.cross_entropy,
        [_time_first(6), _time_first(3)],
        {"weight": _num_targets},
    )


def samples_along_axis_1_as_many_as_steps():
    """Nothing tells: the mean over axis 0 does not hold, which shows when it is cut."""
    return Case(TimeFirst(), F.cross_entropy, [_time_first(5)], {"weight": _num_targets})


class Pairs(nn.Module):
    """Two rows of the inputs make one of the outputs."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 2)

    def forward(self, x):
        left, right = self.body(x).chunk(2)
        return left - right


def fewer_rows_than_inputs():
    x, y = torch.randn(12, 3), torch.randint(2, (6,))
    return Case(Pairs(), F.cross_entropy, [(x, y)], refused="12 inputs but 6 targets.*weight=")


def fewer_rows_than_inputs_with_weights():
    batches = [(torch.randn(2 * n, 3), torch.randint(2, (n,))) for n in (6, 2)]
    return Case(Pairs(), F.cross_entropy, batches, {"weight": _num_targets})


def contrastive_halves():
    """Outputs of both halves are compared within the loss: it is made for the whole batch."""

    def loss(z, targets):
        left, right = z.chunk(2)
        return F.cross_entropy(left @ right.T, torch.arange(len(left)))

    return Case(
        nn.Linear(3, 2),
        loss,
        [(torch.randn(8, 3), None)],
        shares=[1],
        says="as it stands",
        refuses={
            "exact H": "couples|samples",
            "LogitProbeTrace": "couples|samples",
            "exact_traces of G": "couples|samples",
            "LogitProbeTrace of the sum": "couples|samples",
            "sample_traces of G": "couples|samples",
            "R": "couples|samples",
        },
    )


def data_loader():
    loader = DataLoader(TensorDataset(torch.randn(9, 3), torch.randint(2, (9,))), batch_size=4)
    case = Case(mlp(), F.cross_entropy, list(loader), refuses=SMOOTH)
    return case


def endless_loader():
    def endless():
        while True:
            yield torch.zeros(1, 1).expand(2**32, 3), torch.zeros(1).expand(2**32)  # no memory

    return Case(mlp(), F.cross_entropy, endless(), refused="islice")


def numpy_batches():
    batch = (torch.randn(5, 3).numpy(), torch.randint(2, (5,)).numpy())
    return Case(mlp(), F.cross_entropy, [batch], refused="as_tensor")


def sparse_inputs():
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 2))

        def forward(self, x):
            return torch.sparse.mm(x, self.weight) if x.is_sparse else x @ self.weight

    x, y = torch.randn(8, 3).relu(), torch.randint(2, (8,))
    net = Bag()
    dense = Case(net, F.cross_entropy, [(x, y)])
    return Case(
        net,
        F.cross_entropy,
        [(x.to_sparse(), y)],
        right=lambda case: dense.traces(),
        right_ggn=lambda case: dense.ggn_traces(),
    )


def targets_that_broadcast():
    """(N, 1) against (N,) makes an N×N table: no mean over samples."""
    batches = [(torch.randn(n, 3), torch.randn(n)) for n in (8, 3)]

    def loss(outputs, targets):
        return (outputs - targets).square().mean()

    return Case(nn.Linear(3, 1), loss, batches, refused="not the mean over samples")
