"""The owner's word on when peers may use this machine: policy, readings, and the gate that both move."""
