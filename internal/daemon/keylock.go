package daemon

import (
	"context"
	"sync"

	"github.com/usernet/usernet/internal/control"
)

// keyLocks lets one operation at a time work on a link, and different links
// proceed at once. Unlike a mutex it may be held over I/O and waited for with a
// context.
type keyLocks struct {
	mu   sync.Mutex // guards what follows
	held map[control.LinkKey]*keyLock
}

type keyLock struct {
	slot  chan struct{} // holds a token while the key is free
	users int           // holder and waiters
}

// lock waits for the key and returns what frees it.
func (k *keyLocks) lock(ctx context.Context, key control.LinkKey) (unlock func(), err error) {
	k.mu.Lock()
	if k.held == nil {
		k.held = map[control.LinkKey]*keyLock{}
	}
	l := k.held[key]
	if l == nil {
		l = &keyLock{slot: make(chan struct{}, 1)}
		l.slot <- struct{}{}
		k.held[key] = l
	}
	l.users++
	k.mu.Unlock()
	select {
	case <-l.slot:
		return func() { l.slot <- struct{}{}; k.leave(key, l) }, nil
	case <-ctx.Done():
		k.leave(key, l)
		return nil, control.Errorf(control.CodeUnavailable, "link %s: another operation is still under way: %v", key, context.Cause(ctx))
	}
}

func (k *keyLocks) leave(key control.LinkKey, l *keyLock) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if l.users--; l.users == 0 {
		delete(k.held, key)
	}
}
