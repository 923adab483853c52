package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// ServeStream answers the queries of one TCP connection from client until the
// client closes it, stays idle for [Config].IdleTimeout, breaks the framing, or
// ctx or the server ends. It owns conn and closes it in every case. The error
// says why it ended; a client that closed or fell silent is none, nor is the end
// of ctx or of the server.
func (s *Server) ServeStream(ctx context.Context, client netip.Addr, conn net.Conn) error {
	defer conn.Close()
	if !s.begin() {
		return ErrClosed
	}
	defer s.wg.Done()
	release, ok := s.clients.admitStream(client, s.now())
	if !ok {
		s.count.streamsLimited.Add(1)
		return fmt.Errorf("dns: %s already has %d connections", client, s.cfg.Streams)
	}
	defer release()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, end := range []context.Context{ctx, s.ctx} {
		stop := context.AfterFunc(end, func() { _ = conn.Close() })
		defer stop()
	}
	st := &stream{s: s, client: client, conn: conn, cancel: cancel,
		answers: make(chan []byte, s.cfg.StreamInFlight), slots: make(chan struct{}, s.cfg.StreamInFlight)}
	return st.run(ctx)
}

// stream is one connection of ServeStream.
type stream struct {
	s       *Server
	client  netip.Addr
	conn    net.Conn
	cancel  context.CancelFunc
	answers chan []byte   // from workers to writeLoop
	slots   chan struct{} // one token per query being answered
	workers sync.WaitGroup
}

func (st *stream) run(ctx context.Context) error {
	written := make(chan error, 1)
	go func() { written <- st.writeLoop() }()
	err := st.readLoop(ctx)
	st.workers.Wait()
	close(st.answers)
	if werr := <-written; err == nil {
		err = werr
	}
	return err
}

// readLoop reads length-prefixed queries (RFC 1035 §4.2.2) and starts a worker
// for each: RFC 7766 §6.2.1.1 wants answers out of order rather than late.
func (st *stream) readLoop(ctx context.Context) error {
	for {
		select {
		case st.slots <- struct{}{}:
		case <-ctx.Done():
			return nil // told to end, or the writer has the error
		}
		query, err := st.readQuery()
		if err != nil || query == nil {
			<-st.slots
			return err
		}
		st.workers.Add(1)
		go st.answer(ctx, query)
	}
}

// readQuery returns nil without an error when the client is done.
func (st *stream) readQuery() ([]byte, error) {
	if err := st.conn.SetReadDeadline(time.Now().Add(st.s.cfg.IdleTimeout)); err != nil {
		return nil, nil //nolint:nilerr // closed under us by ctx or Close
	}
	var length [2]byte
	if _, err := io.ReadFull(st.conn, length[:]); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) {
			return nil, nil
		}
		return nil, fmt.Errorf("dns: read query length from %s: %w", st.client, err)
	}
	n := int(binary.BigEndian.Uint16(length[:]))
	if n > st.s.cfg.MaxQuery {
		st.s.count.queries.Add(1)
		st.s.count.oversized.Add(1)
		return nil, fmt.Errorf("dns: query of %d bytes from %s: the limit is %d", n, st.client, st.s.cfg.MaxQuery)
	}
	query := make([]byte, n)
	if _, err := io.ReadFull(st.conn, query); err != nil {
		return nil, fmt.Errorf("dns: read query of %d bytes from %s: %w", n, st.client, err)
	}
	return query, nil
}

// answer is one worker: it ends when its query is answered and handed to
// writeLoop.
func (st *stream) answer(ctx context.Context, query []byte) {
	defer st.workers.Done()
	defer func() { <-st.slots }()
	b := st.s.serve(ctx, st.client, query, transport{stream: true})
	if b == nil {
		return
	}
	framed := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(b)), uint16(len(b)))
	st.answers <- append(framed, b...) // as many places as workers: never blocks for long
}

// writeLoop writes answers until the channel closes. After a write error it only
// drains, so that no worker waits for it.
func (st *stream) writeLoop() error {
	var failed error
	for b := range st.answers {
		if failed != nil {
			continue
		}
		err := st.conn.SetWriteDeadline(time.Now().Add(st.s.cfg.IdleTimeout))
		if err == nil {
			_, err = st.conn.Write(b)
		}
		if err != nil {
			failed = fmt.Errorf("dns: write answer to %s: %w", st.client, err)
			st.cancel()
		}
	}
	return failed
}
