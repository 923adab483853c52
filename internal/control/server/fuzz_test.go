package server

import (
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzParseRights: a control message never yields more descriptors than its
// bytes have room for. Descriptor numbers in it are only wrapped when they are
// negative or absurd, so that the fuzzer cannot close its own files.
func FuzzParseRights(f *testing.F) {
	f.Add(unix.UnixRights(1 << 28))
	f.Add([]byte{16, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, oob []byte) {
		msgs, err := unix.ParseSocketControlMessage(oob)
		for i := range msgs {
			if len(msgs[i].Data)%4 != 0 {
				continue
			}
			fds, _ := unix.ParseUnixRights(&msgs[i]) // only their numbers matter here
			for _, fd := range fds {
				if fd >= 0 && fd < 1<<20 {
					return // the number of a descriptor that may be open here
				}
			}
		}
		files, perr := parseRights(oob)
		if (err != nil) && perr == nil {
			t.Fatalf("accepted %x although %v", oob, err)
		}
		if 4*len(files) > len(oob) {
			t.Fatalf("%d bytes yielded %d descriptors", len(oob), len(files))
		}
		for _, file := range files {
			if file != nil {
				_ = file.Close() // not open, by the check above
			}
		}
	})
}
