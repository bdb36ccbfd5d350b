"""Networks and methods: backbones, objectives, and what they are made of."""
