//! The HTTP API: OpenAI-shaped generation, the fleet, health.
