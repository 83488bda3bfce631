"""The defaults of a configuration: a changed default would change the training of every existing file."""

import yaml

from sewsnn.train.schema import Config

DEFAULTS = """
name: run
seed: 2020
output: null
data: {name: digits, root: null, batch_size: 64, workers: 0, shift: 0, flip: false, T_train: 0, drop_last: false,
  generated: 0, image_size: 224, test_size: 0, resize: 256, scale_min: 0.08, augment: none, erase: 0.0,
  loader: torchvision, on_corrupt: stop, split_by: number, frame_us: 0, frame_size: 0, split: paper}
model: {name: sew_resnet18, T: 4, connect_f: ADD, blocks: [], widths: [], stem: null, stem_kernel: null,
  zero_init_residual: false, pack_spikes: false, last_neuron: null, weights: null,
  neuron: {type: IF, tau: 2.0, decay_input: true, v_threshold: 1.0, v_reset: 0.0, detach_reset: true, surrogate: ATan,
    surrogate_parameter: null, tau_grad: full, backend: auto}}
optimizer: {name: sgd, lr: 0.1, momentum: 0.9, nesterov: false, weight_decay: 0.0, decay_norms: true, clip_norm: 0.0}
schedule: {name: cosine, every: epoch, step_size: 64, gamma: 0.1, final: 0.0, warmup_epochs: 0.0, warmup_start: 0.01}
loss: {name: ce, label_smoothing: 0.0, tet_lambda: 0.05, tet_target: 1.0, mixup: 0.0, cutmix: 0.0}
train: {epochs: 10, device: auto, amp: 'off', test_amp: 'off', channels_last: false, compile: 'off', cuda_graph: false,
  accumulate: 1, ema: 0.0, sync_bn: false, deterministic: false, checkpoint_steps: 0, keep: 0,
  log_steps: 50, threads: 0, monitor: false}
analysis: {seeds: 3, jobs: 0, batches: 0, sweep: [0.1, 0.3, 1.0],
  learning_rates: {ADD: 0.001, AND: 0.03, IAND: 0.063, Spiking: 0.1, Plain: 0.005}, depths: [18, 34, 50, 101, 152],
  settings: [[1.0, 2.0], [0.5, 2.0], [1.0, 3.0]]}
published: {test_accuracy: null, last_test_accuracy: null, source: ''}
"""


def test_defaults_stay_what_they_are():
    assert Config().to_dict() == yaml.safe_load(DEFAULTS)
