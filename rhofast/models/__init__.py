"""Networks and pretraining methods: backbones, objectives and their parts."""
