package tunnel

import "errors"

// Split is the splitter as one call, for tests in tunnel_test.
func Split(hdr Header, pkt []byte) ([][]byte, error) {
	var s splitter
	if err := s.start(hdr, pkt); err != nil {
		return nil, err
	}
	var all [][]byte
	for s.nextLen() > 0 {
		// With guard bytes that next must not touch.
		b := make([]byte, s.nextLen(), s.nextLen()+8)
		copy(b[len(b):cap(b)], "guarding")
		s.next(b)
		if string(b[len(b):cap(b)]) != "guarding" {
			return nil, errors.New("next wrote past the length that nextLen told")
		}
		all = append(all, b)
	}
	return all, nil
}
