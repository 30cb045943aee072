//! The layers of a transformer.

pub(crate) mod attention;
pub(crate) mod layer_norm;
pub(crate) mod layout;
pub(crate) mod linear;
pub(crate) mod matmul;
