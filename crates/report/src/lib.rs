//! Result records, their JSON schema and their renderers.
