"""Ray Serve deployments: one application, one ingress, each served ensemble a model of the protocol."""
