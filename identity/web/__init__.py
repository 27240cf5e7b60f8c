"""What all routes share: errors, request bodies, authentication, headers, pages, probes."""
