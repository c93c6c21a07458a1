"""Plain, slow references of the methods that DynaBERT is compared with, written from their papers.

One row at a time, without padding, sums spelled out, training by plain autograd on stock models. They share no code
with what they check but the seeds.
"""

import copy
import math

import torch
from reference.loop import clip, hard_loss
from torch import nn

from dynabert.seeds import derive_seed


def rows_of(batch):
    """Each row alone, its padding cut off: id and inputs."""
    for row in range(len(batch.ids)):
        length = int(batch.inputs["attention_mask"][row].sum())
        yield int(batch.ids[row]), {name: tensor[row : row + 1, :length] for name, tensor in batch.inputs.items()}


def deebert_ramp(weights, hidden):
    """Logits of one row (seq, hidden): tanh of a linear map of the first token, then a linear map."""
    pooled = torch.tanh(weights["dense.weight"] @ hidden[0] + weights["dense.bias"])
    return weights["classifier.weight"] @ pooled + weights["classifier.bias"]


def fastbert_head(weights, hidden):
    """Logits of one row (seq, hidden): every token is attended from, though only the first is used."""

    def linear(name, features):
        return features @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    features = torch.tanh(linear("down", hidden))
    query, key, value = (linear(name, features) for name in ("query", "key", "value"))
    heads = []
    for head in range(2):
        part = slice(64 * head, 64 * head + 64)
        scores = torch.exp(query[:, part] @ key[:, part].T / math.sqrt(64))
        heads.append(scores / scores.sum(dim=1, keepdim=True) @ value[:, part])
    first = linear("output", torch.cat(heads, dim=1))[0]
    return linear("classifier", torch.tanh(linear("dense", first)))


def entropy(logits):
    """-sum p log p, natural logarithm."""
    powers = [math.exp(float(x) - float(logits.max())) for x in logits]
    shares = [power / sum(powers) for power in powers]
    return -sum(share * math.log(share) for share in shares if share > 0)


def exit_of_row(model, ramps, ramp_of, inputs, threshold, rule):
    """Where one row leaves a stock model, and the logits that it leaves with."""
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
        for place, weights in enumerate(ramps):
            logits = ramp_of(weights, output.hidden_states[place + 1][0])
            unsure = entropy(logits)
            if unsure < threshold if rule == "entropy" else unsure / math.log(len(logits)) <= threshold:
                return place + 1, logits
    return len(ramps) + 1, output.logits[0]


def kl(student, teacher):
    """KL(teacher || student), the mean over the rows."""
    total = student.new_zeros(())
    for row in range(len(student)):
        target, own = torch.softmax(teacher[row], 0), torch.softmax(student[row], 0)
        for label in range(len(target)):
            total = total + target[label] * (torch.log(target[label]) - torch.log(own[label]))
    return total / len(student)


def train_ramps(model, ramps, ramp_of, batches, *, distil, n_steps, lr, largest=1.0):
    """Train ramps, given as dicts of weights, in place; yields the losses of each step by ramp.

    :param distil: whether they learn from the model's logits, or from the labels.
    """
    parameters = [weight.requires_grad_() for weights in ramps for weight in weights.values()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0)
    for step in range(n_steps):
        batch = batches[step % len(batches)]
        answers, tops = [[] for _ in ramps], []
        for _, inputs in rows_of(batch):
            with torch.no_grad():
                output = model(**inputs, output_hidden_states=True)
            tops.append(output.logits[0])
            for place, weights in enumerate(ramps):
                answers[place].append(ramp_of(weights, output.hidden_states[place + 1][0]))
        losses = []
        for logits in answers:
            stacked = torch.stack(logits)
            losses.append(kl(stacked, torch.stack(tops)) if distil else hard_loss(stacked, batch.labels))
        optimizer.zero_grad()
        sum(losses).backward()
        clip(parameters, largest)
        for group in optimizer.param_groups:
            group["lr"] = lr * (n_steps - step) / n_steps
        optimizer.step()
        yield [loss.item() for loss in losses]


def kept_layers(seed, step, n_layers, rate):
    """The layers that a step runs: each is skipped with a probability; never all."""
    chances = [derive_seed(seed, "layerdrop", step, layer) / 2**63 for layer in range(n_layers)]
    kept = [layer for layer in range(n_layers) if not chances[layer] < rate]
    return kept or [max(range(n_layers), key=lambda layer: chances[layer])]


def train_layers(model, layers_of_step, batches, *, n_steps, lr, largest=1.0):
    """Fine-tune a stock model of which each step runs some layers, in place; yields the loss of each step."""
    all_layers = model.base_model.encoder.layer
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0)
    for step in range(n_steps):
        batch = batches[step % len(batches)]
        model.base_model.encoder.layer = nn.ModuleList([all_layers[layer] for layer in layers_of_step(step)])
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        loss = hard_loss(model(**batch.inputs).logits, batch.labels)
        loss.backward()
        clip(parameters, largest)
        for group in optimizer.param_groups:
            group["lr"] = lr * (n_steps - step) / n_steps
        optimizer.step()
        yield loss.item()
    model.base_model.encoder.layer = all_layers


def first_layers(model, n_layers):
    """A stock model of the first layers of another."""
    small = copy.deepcopy(model)
    small.base_model.encoder.layer = small.base_model.encoder.layer[:n_layers]
    return small
