//! What was asked: parsed and validated before anything is touched.
