package tunnel

// scatter copies two byte strings over bufs and returns how much fitted.
func scatter(bufs [][]byte, a, b []byte) int {
	n := 0
	for _, dst := range bufs {
		if len(a) > 0 {
			m := copy(dst, a)
			a, dst, n = a[m:], dst[m:], n+m
		}
		m := copy(dst, b)
		b, n = b[m:], n+m
	}
	return n
}

// pieces counts the buffers that are not empty; 0 when there are too many.
func pieces(bufs [][]byte) int {
	n := 0
	for _, b := range bufs {
		if len(b) > 0 {
			n++
		}
	}
	if n > MaxBuffers {
		return 0
	}
	return n
}

// plausible reports whether bufs can be one frame to write: in few enough
// pieces, longer than its header and no longer than a frame can be.
func plausible(bufs [][]byte) bool {
	total := length(bufs)
	return pieces(bufs) > 0 && total > HeaderLen && total <= MaxFrame
}

// length is the number of bytes in bufs.
func length(bufs [][]byte) int {
	total := 0
	for _, b := range bufs {
		total += len(b)
	}
	return total
}
