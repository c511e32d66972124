package e2e

import (
	"context"
	"crypto/rand"
	"io"
	"net/http"
	"syscall"
	"testing"
	"time"

	"atcr.io/internal/oci"
)

// arrived is the range that the hold has of an upload.
func arrived(t *testing.T, location, token string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, location, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusNoContent {
		t.Fatalf("GET of an upload: %s", res.Status)
	}
	return res.Header.Get("Range")
}

// Would catch a stop that cuts a transfer in flight, and one that cannot be hurried.
func TestStop(t *testing.T) {
	t.Parallel()
	n := startNetwork(t, "filesystem")
	token := registryToken(t, n, n.alice, "repository:alice.test/stop:pull,push")
	base := "http://" + n.registry + "/v2/alice.test/stop/blobs/"
	blob := make([]byte, 4<<20)
	_, _ = rand.Read(blob) // never fails
	digest := oci.FromBytes(blob)

	send := func(ctx context.Context, location string, body io.Reader) <-chan int {
		status := make(chan int, 1)
		go func() { status <- patch(ctx, location, token, body) }()
		return status
	}

	// The first signal: what is in flight ends well, and then the process does.
	location := startUpload(t, base, token)
	reader, writer := io.Pipe()
	status := send(t.Context(), location, reader)
	if _, err := writer.Write(blob[:1<<20]); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "bytes arrive at the hold", func() bool { return arrived(t, location, token) != "0-0" })
	if err := n.public.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "no new connection is taken", func() bool {
		res, err := http.Get(n.public.url + "/xrpc/_health") //nolint:noctx // loopback
		if err == nil {
			_ = res.Body.Close()
		}
		return err != nil
	})
	if _, err := writer.Write(blob[1<<20:]); err != nil {
		t.Fatal(err)
	}
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	if got := <-status; got != http.StatusAccepted {
		t.Errorf("the transfer in flight ended with %d", got)
	}
	<-n.public.exited
	if code := n.public.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("the hold ended with %d", code)
	}

	// After its restart the upload goes on where it was.
	n.public.start(t, "/xrpc/_health")
	do(t, http.MethodPut, location+"?digest="+digest.String(), token, nil, http.StatusCreated)

	// The second signal ends the process at once.
	ctx, cancel := context.WithCancel(t.Context())
	body, started := newStall(ctx, blob)
	status = send(ctx, startUpload(t, base, token), body)
	<-started
	for range 2 {
		if err := n.public.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		pause(t)
	}
	select {
	case <-n.public.exited:
	case <-time.After(15 * time.Second): // the grace is 30
		t.Error("a second signal did not end the hold")
	}
	cancel()
	<-status
	n.public.start(t, "/xrpc/_health")
}
