package packet

// AppendTCPReset appends a whole packet that resets orig's connection.
func AppendTCPReset(b []byte, orig []byte) []byte { return b }
