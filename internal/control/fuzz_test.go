package control

import (
	"encoding/json"
	"testing"
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
