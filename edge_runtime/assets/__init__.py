"""Bundled model, tasks and data; see the LICENSE and SOURCE files beside them."""
