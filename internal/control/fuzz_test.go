package control

import (
	"encoding/json"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzDecodeStrict: whatever is accepted means the same when it is written
// and read again, and whatever is not is CodeInvalid.
func FuzzDecodeStrict(f *testing.F) {
	f.Add([]byte(`{"network":"n","container":"c","ifname":"eth0","sets":[[{"subnet":"10.1.0.0/24"}]],"ips":["10.1.0.2"]}`))
	f.Add([]byte(`{"network":"n","publications":[{"proto":"tcp","hostIP":"::1","hostPort":80,"port":8080,"fd":true}]}`))
	f.Add([]byte(`{"nwtwork":1}`))
	f.Add([]byte(`{"addrs":["::ffff:10.0.0.1/120"],"dns":{"nameservers":["fe80::1%eth0"]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var req AttachRequest
		if err := DecodeStrict(data, &req); err != nil {
			if CodeOf(err) != CodeInvalid {
				t.Fatalf("error %v has code %s", err, CodeOf(err))
			}
			return
		}
		first, err := json.Marshal(&req)
		if err != nil {
			t.Fatalf("accepted %q and cannot write it: %v", data, err)
		}
		var again AttachRequest
		if err := DecodeStrict(first, &again); err != nil {
			t.Fatalf("accepted %q, wrote %s, refused that: %v", data, first, err)
		}
		if second, _ := json.Marshal(&again); string(second) != string(first) {
			t.Fatalf("%s became %s", first, second)
		}
	})
}

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
