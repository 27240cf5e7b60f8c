"""Terms of service: the policies, and who accepted which."""
