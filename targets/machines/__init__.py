"""Machine descriptions that ship with ccnn, one YAML file each."""
