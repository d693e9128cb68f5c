//! kiln-bake
