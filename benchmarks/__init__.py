"""How accurate and how fast Stenogate is, beside the libraries that it stands on. Needs the test requirements."""
