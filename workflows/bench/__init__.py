"""What things cost: packages on the device, a training step of a teacher, a step of distillation."""
