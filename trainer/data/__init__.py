"""Data sets: manifests, patient-level splits, augmentation, phantom sets, import."""
