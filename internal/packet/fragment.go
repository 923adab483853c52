package packet

// Fragments splits pkt into fragments of at most mtu bytes.
func Fragments(pkt []byte, mtu int, id uint32, emit func(frag []byte) error) error { return nil }
