// This file lets handshake.go declare functions whose bodies are elsewhere.
