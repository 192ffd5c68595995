//! The container's file system: mounts, devices, masks, the change of root.
