"""Sections of a suggested run file."""

from orchestrator.data.columns import Holds

IMAGE_MODELS = """\
models:
  teacher:  # the accurate one: the search compresses it
    model: {teacher}
    training: {{epochs: {epochs}, batch_size: {batch}, lr: 0.1, channels_last: true}}
    # resources: {{cpus: 2}}  # cores, and so threads, to train with
  student:  # small, taught by the teacher
    model: {{factory: cnn}}
    teacher: teacher
    training:
      epochs: {epochs}
      batch_size: {batch}
      lr: 0.05
      loss: {{kind: distillation, temperature: 4.0, weight: 0.9}}
  small:  # the same size, from the labels alone: another view for the ensembles
    model: {{factory: cnn}}
    training: {{epochs: {epochs}, batch_size: {batch}, lr: 0.05}}
"""

TABULAR_MODELS = """\
models:
  teacher:  # the accurate one: the search compresses it
    model: {{factory: mlp, kwargs: {{widths: [256, 128]}}}}
    training: {{epochs: {epochs}, batch_size: {batch}, optimizer: adamw, lr: 0.003}}
  student:  # small, taught by the teacher
    model: {{factory: mlp, kwargs: {{widths: [64, 32]}}}}
    teacher: teacher
    training:
      epochs: {epochs}
      batch_size: {batch}
      optimizer: adamw
      lr: 0.003
      loss: {{kind: distillation, temperature: 2.0, weight: 0.7}}
  small:  # from the targets alone: another view for the ensembles
    model: {{factory: mlp, kwargs: {{widths: [96]}}}}
    training: {{epochs: {epochs}, batch_size: {batch}, optimizer: adamw, lr: 0.003}}
"""

TEXT_MODELS = """\
models:
  teacher:  # convolutions over words; the search compresses it
    model: {{factory: text_cnn, kwargs: {{view: words}}}}
    training: {{epochs: {epochs}, batch_size: {batch}, optimizer: adamw, lr: 0.002}}
  student:  # words of a kind of their own: another view for the ensembles
    model: {{factory: text_transformer, kwargs: {{view: subwords}}}}
    training: {{epochs: {epochs}, batch_size: {batch}, optimizer: adamw, lr: 0.001}}
  small:  # a linear model of hashed n-grams: small, fast, and hard to beat
    model: {{factory: text_ngrams, kwargs: {{view: ngrams}}}}
    training: {{epochs: {epochs}, batch_size: {batch}, optimizer: adamw, lr: 0.02}}
"""

AUDIO_MODELS = """\
models:
  teacher:  # convolutions over a spectrogram; the search compresses it
    model: {{factory: audio_cnn}}
    training: {{epochs: {epochs}, batch_size: {batch}, optimizer: adamw, lr: 0.002}}
  student:  # attention over the spectrogram: another view for the ensembles
    model: {{factory: audio_transformer}}
    training: {{epochs: {epochs}, batch_size: {batch}, optimizer: adamw, lr: 0.001}}
  small:  # from the waveform itself: a third view
    model: {{factory: wave_cnn}}
    training: {{epochs: {epochs}, batch_size: {batch}, optimizer: adamw, lr: 0.002}}
"""

MODELS: dict[Holds, str] = {
    "image": IMAGE_MODELS,
    "tensor": TABULAR_MODELS,
    "numbers": TABULAR_MODELS,
    "features": TABULAR_MODELS,
    "text": TEXT_MODELS,
    "audio": AUDIO_MODELS,
}

SEARCH = """\
search:  # pruning x precision x distillation, on latency measured on this machine
  parent: teacher
  trials: 16
  space:
    plan:
      - choice:
          - null  # whole, or a share of the channels pruned, and recovered by distillation
          - - kind: prune_channels
              amount: {{choice: [0.25, 0.5]}}
              criterion: {{choice: [l2, lamp, fpgm]}}
            - {{kind: recover}}
      - choice: [null, {{kind: bf16}}, {{kind: int8_static}}, {{kind: int8_dynamic}}]
  latency: {{batch: 32, threads: 1, blocks: {blocks}}}
  promise: {{max_drop: {drop}}}  # the chosen variant is not worse than its parent by more; {unit}
"""

VOTES = """\
ensembles:  # 'chosen' keeps the promise, 'fastest' is the fastest point of the search's front
  vote:
    kind: parallel
    members: [teacher, student, small]
  cascade:  # the cheap variant first; unsure rows go on to the teacher
    kind: sequential
    stages: [fastest, teacher]
  mix:  # weights are fitted on the validation part
    kind: weighted_mix
    members: [chosen, student, small, teacher]
"""

MIXES = """\
ensembles:  # 'chosen' keeps the promise, 'fastest' is the fastest point of the search's front
  # a cascade needs probabilities, so there is none for regression
  mean:
    kind: parallel
    members: [teacher, student, small]
  mix:  # weights are fitted on the validation part
    kind: weighted_mix
    members: [chosen, student, small, teacher]
  light:
    kind: weighted_mix
    members: [fastest, student]
"""
