package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// A Tombstone says that a link, or a lease without one, was deleted while no
// daemon could be told. The plugin leaves it beside the socket; the next daemon
// replays it before it serves:
//
//	stones, err := control.Tombstones(socket)
//	for _, s := range stones {
//		// end link and lease of s.Link, as far as they were made before s.Deleted
//		s.Remove()
//	}
//
// The comparison matters: a DEL can write its tombstone while a daemon is just
// starting, and the daemon after that one must not take it for the deletion of
// a link that was made in between under the same key.
type Tombstone struct {
	Link    LinkKey   `json:"link"`
	Deleted time.Time `json:"deleted"`

	path string // of its file; empty before Write
}

// tombstoneDir is the directory beside the socket that holds the tombstones.
const tombstoneDir = "tombstones"

// Write puts the tombstone on disk beside the socket, durably and whole: a
// reader sees all of it or nothing. Two tombstones of one link are one, with
// the later time.
//
// Where the socket's directory does not exist no daemon has run since boot and
// there is no link to delete; Write then does nothing.
func (t *Tombstone) Write(socket string) (err error) {
	if err := t.Link.Validate(); err != nil {
		return fmt.Errorf("write tombstone: %w", err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("write tombstone of %s: %w", t.Link, err)
		}
	}()
	parent := filepath.Dir(socket)
	if _, err := os.Stat(parent); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	dir := filepath.Join(parent, tombstoneDir)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	b, err := json.Marshal(t)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // gone already when it was renamed
	_, werr := tmp.Write(b)
	if err := errors.Join(werr, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	// None of the parts can hold a '~' (CNI's alphabet for names), except the
	// interface name, which comes last: the file name is unambiguous.
	path := filepath.Join(dir, t.Link.Network+"~"+t.Link.Container+"~"+t.Link.IfName)
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	t.path = path
	return syncDir(dir)
}

// syncDir makes a rename in a directory durable (fsync(2), "NOTES").
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Tombstones returns the tombstones beside a socket, in no particular order;
// none is no error. Files that are not whole tombstones are reported in the
// error, beside those that are.
func Tombstones(socket string) ([]Tombstone, error) {
	dir := filepath.Join(filepath.Dir(socket), tombstoneDir)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list tombstones: %w", err)
	}
	var stones []Tombstone
	var faults []error
	for _, e := range entries {
		if e.Name()[0] == '.' {
			continue // being written, or left by a plugin that was killed
		}
		t, err := readTombstone(filepath.Join(dir, e.Name()))
		switch {
		case errors.Is(err, fs.ErrNotExist): // removed meanwhile
		case err != nil:
			faults = append(faults, err)
		default:
			stones = append(stones, t)
		}
	}
	return stones, errors.Join(faults...)
}

func readTombstone(path string) (Tombstone, error) {
	t := Tombstone{path: path}
	b, err := os.ReadFile(path)
	if err != nil {
		return t, fmt.Errorf("read tombstone: %w", err)
	}
	if err := json.Unmarshal(b, &t); err != nil {
		return t, fmt.Errorf("decode tombstone %s: %w", path, err)
	}
	if err := t.Link.Validate(); err != nil {
		return t, fmt.Errorf("tombstone %s: %w", path, err)
	}
	return t, nil
}

// Remove deletes the tombstone from disk after it was replayed. Removing it
// twice is no error.
func (t *Tombstone) Remove() error {
	if t.path == "" {
		return nil
	}
	if err := os.Remove(t.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove tombstone of %s: %w", t.Link, err)
	}
	return nil
}
