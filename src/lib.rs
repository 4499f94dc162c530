//! Store-and-forward agent for Opik.
