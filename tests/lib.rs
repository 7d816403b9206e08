//! Holds no code: the claims are the test targets beside this file.
