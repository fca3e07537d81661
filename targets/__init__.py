"""What the hardware is and does: machines, programs, their safety proof and their simulator."""
