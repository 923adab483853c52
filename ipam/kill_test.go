package ipam

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// killedDB is set, to the path of a database, for the child process of
// TestKilledProcessLosesNothing.
const killedDB = "USERNET_TEST_IPAM_KILLED_DB"

func killedConfig() Config {
	return Config{Sets: [][]Range{{span("10.0.0.0/24", "", "")}, {subnet("fd00::/64")}}, Quarantine: time.Millisecond}
}

// runKilledChild is the child: workers acquire and release until the process
// is killed, and say on stdout what they are about to do and what was done.
func runKilledChild() bool {
	path := os.Getenv(killedDB)
	if path == "" {
		return false
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: 10 * time.Second})
	var p *Pool
	if err == nil {
		p, err = Open(context.Background(), killedConfig(), NewBoltStore(db, "ipam"))
	}
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() { killedWorker(p, w) })
	}
	wg.Wait()
	return true
}

func killedWorker(p *Pool, w int) {
	ctx := context.Background()
	for i := 0; ; i++ {
		owner := Owner(fmt.Sprintf("%d/%d", w, i%4))
		// One write per line: lines of several workers do not mix.
		fmt.Printf("acquire %s\n", owner)
		l, err := p.Acquire(ctx, Request{Owner: owner})
		if err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		fmt.Printf("acquired %s %s %s\n", owner, l.Addrs[0], l.Addrs[1])
		if i%3 == 0 {
			continue // keep it
		}
		fmt.Printf("release %s\n", owner)
		if err := p.Release(ctx, owner); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		fmt.Printf("released %s\n", owner)
	}
}

// TestKilledProcessLosesNothing kills a process again and again at random
// points and compares the database with what the process has said: an
// operation reported as done is there, one announced may be, nothing else is.
func TestKilledProcessLosesNothing(t *testing.T) {
	rounds := 25
	if testing.Short() {
		rounds = 5
	}
	path := filepath.Join(t.TempDir(), "state.db")
	openDB(t, path).Close() // a kill while bbolt lays out a new file is not what this tests
	known := make(map[Owner]*knowledge)
	operations := 0
	for round := range rounds {
		operations += killAfter(t, path, rand.IntN(400), known)
		verifyKilled(t, path, round, known)
	}
	t.Logf("%d kills, %d operations reported as done", rounds, operations)
	if operations < rounds*10 {
		t.Errorf("the child did too little before it was killed")
	}
}

// knowledge is what the child's words say about an owner's lease.
type knowledge struct {
	addrs string // what it holds if it holds; "" when that is unknown
	may   bool   // it may hold
	must  bool   // it holds
}

// killAfter runs the child until it has said a number of lines, kills it and
// returns how many operations it reported as done.
func killAfter(t *testing.T, path string, lines int, known map[Owner]*knowledge) (done int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), killedDB+"="+path)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }() // its error is the kill
	r := bufio.NewReader(out)
	for n := 0; ; n++ {
		if n == lines {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		line, err := r.ReadString('\n')
		if err == io.EOF {
			return done // a last line without its end was not said
		}
		if err != nil {
			t.Fatal(err)
		}
		done += learn(t, strings.Fields(line), known)
	}
}

// learn notes one line of the child.
func learn(t *testing.T, words []string, known map[Owner]*knowledge) (done int) {
	t.Helper()
	if len(words) < 2 || words[0] == "error" {
		t.Fatalf("the child says: %s", strings.Join(words, " "))
	}
	k := known[Owner(words[1])]
	if k == nil {
		k = &knowledge{}
		known[Owner(words[1])] = k
	}
	switch words[0] {
	case "acquire":
		if !k.must {
			k.may, k.addrs = true, ""
		}
	case "acquired":
		now := strings.Join(words[2:], " ")
		if k.must && k.addrs != now {
			t.Errorf("owner %s held %s and was given %s", words[1], k.addrs, now)
		}
		*k = knowledge{addrs: now, may: true, must: true}
		return 1
	case "release":
		k.must = false
	case "released":
		*k = knowledge{}
		return 1
	}
	return 0
}

// verifyKilled compares the database with what is known.
func verifyKilled(t *testing.T, path string, round int, known map[Owner]*knowledge) {
	t.Helper()
	db := openDB(t, path)
	defer db.Close()
	p, err := Open(t.Context(), killedConfig(), NewBoltStore(db, "ipam")) // refuses an address held twice
	if err != nil {
		t.Fatalf("round %d: %v", round, err)
	}
	for owner, k := range known {
		l, held := p.Lookup(owner)
		switch {
		case held && !k.may:
			t.Errorf("round %d: %s was released and holds %v", round, owner, l.Addrs)
		case !held && k.must:
			t.Errorf("round %d: %s was given %s and holds nothing", round, owner, k.addrs)
		case held && k.addrs != "" && k.addrs != strings.Join(texts(l), " "):
			t.Errorf("round %d: %s was given %s and holds %v", round, owner, k.addrs, l.Addrs)
		}
		// The database is the truth from which the next child starts.
		*k = knowledge{may: held, must: held}
		if held {
			k.addrs = strings.Join(texts(l), " ")
		}
	}
	for _, l := range p.Leases() {
		if known[l.Owner] == nil {
			t.Errorf("round %d: %q is held by nobody who asked", round, l.Owner)
		}
	}
}
