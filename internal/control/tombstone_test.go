package control

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestTombstoneRoundTrip(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "usernet.sock")
	if stones, err := Tombstones(socket); len(stones) != 0 || err != nil {
		t.Fatalf("before any: %v, %v", stones, err)
	}
	key := LinkKey{Network: "web", Container: "c1", IfName: "a~b"}
	first := Tombstone{Link: key, Deleted: time.Unix(1, 0).UTC()}
	later := Tombstone{Link: key, Deleted: time.Unix(2, 0).UTC()}
	other := Tombstone{Link: LinkKey{Network: "web", Container: "c1", IfName: "eth1"}, Deleted: time.Unix(3, 0).UTC()}
	for _, s := range []*Tombstone{&first, &later, &other} {
		if err := s.Write(socket); err != nil {
			t.Fatal(err)
		}
	}
	stones, err := Tombstones(socket)
	if err != nil || len(stones) != 2 {
		t.Fatalf("got %v, %v; want two", stones, err)
	}
	got := map[LinkKey]time.Time{}
	for i := range stones {
		got[stones[i].Link] = stones[i].Deleted
		for range 2 { // twice is no error
			if err := stones[i].Remove(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !got[key].Equal(later.Deleted) || !got[other.Link].Equal(other.Deleted) {
		t.Errorf("got %v", got)
	}
	if stones, err := Tombstones(socket); len(stones) != 0 || err != nil {
		t.Errorf("after removal: %v, %v", stones, err)
	}
}

// TestTombstoneWithoutDaemonEver: a DEL on a machine that never had a daemon
// leaves nothing behind.
func TestTombstoneWithoutDaemonEver(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "absent")
	s := Tombstone{Link: LinkKey{Network: "web", Container: "c1", IfName: "eth0"}}
	if err := s.Write(filepath.Join(dir, "usernet.sock")); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the directory was made: %v", err)
	}
}

// TestTombstonesSkipsBroken: one bad file does not hide the good ones.
func TestTombstonesSkipsBroken(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "usernet.sock")
	good := Tombstone{Link: LinkKey{Network: "web", Container: "c1", IfName: "eth0"}}
	if err := good.Write(socket); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(good.path)
	for name, text := range map[string]string{"broken": "{", "escape": `{"link":{"network":"../x","container":"c","ifname":"e"}}`, ".new-1": "{"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	stones, err := Tombstones(socket)
	if len(stones) != 1 || stones[0].Link != good.Link {
		t.Errorf("got %v", stones)
	}
	for _, name := range []string{"broken", "escape"} {
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("error %v does not name %s", err, name)
		}
	}
}
