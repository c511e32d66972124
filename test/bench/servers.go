package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"atcr.io/internal/devnet"
	"atcr.io/test/components/toolbox"
)

// startDistribution runs the peer on a folder or on S3. auth may be nil: it does not ask who it is.
func (b *bench) startDistribution(ctx context.Context, name string, s3 *s3Server, auth *tokens) (*process, error) {
	program, err := toolbox.Path("registry")
	if err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	storage := fmt.Sprintf("  filesystem:\n    rootdirectory: %s\n", filepath.Join(b.dir, name))
	if s3 != nil {
		storage = fmt.Sprintf("  s3:\n    accesskey: %s\n    secretkey: %s\n    region: us-east-1\n    regionendpoint: %s\n    forcepathstyle: true\n    secure: false\n    bucket: %s\n",
			s3.key, s3.secret, s3.url, bucket)
	}
	config := filepath.Join(b.dir, name+".yml")
	text := fmt.Sprintf("version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n%s  cache:\n    blobdescriptor: inmemory\n  delete:\n    enabled: true\nhttp:\n  addr: 127.0.0.1:%d\n", storage, port)
	if auth != nil {
		text += auth.config()
	}
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	url := fmt.Sprintf("http://127.0.0.1:%d", port)
	p, err := start(ctx, b.dir, name, url, url+"/v2/", nil, program, "serve", config)
	if err != nil {
		return nil, err
	}
	b.stoppers = append(b.stoppers, p.stop)
	return p, nil
}

// holdProcess is a public hold that everybody may push to.
type holdProcess struct {
	*process
	did string
}

func (b *bench) startHold(ctx context.Context, name string, env ...string) (*holdProcess, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	url := fmt.Sprintf("http://localhost:%d", port)
	if len(env) == 0 {
		env = []string{"STORAGE_DRIVER=filesystem", "STORAGE_ROOT_DIR=" + filepath.Join(b.dir, name)}
	}
	env = append(env, "HOLD_PUBLIC_URL="+url, fmt.Sprintf("HOLD_SERVER_ADDR=127.0.0.1:%d", port), "HOLD_DEBUG_ADDR=", "HOLD_LOG_LEVEL=warn",
		"HOLD_DATABASE_DIR="+filepath.Join(b.dir, name+"-db"), "HOLD_PLC_URL="+b.network.PLCURL, "HOLD_OWNER="+b.alice.DID,
		"HOLD_PUBLIC=true", "HOLD_ALLOW_ALL_CREW=true")
	p, err := start(ctx, b.dir, name, url, url+"/xrpc/_health", env, filepath.Join(b.bin, "atcr-hold"))
	if err != nil {
		return nil, err
	}
	b.stoppers = append(b.stoppers, p.stop)
	return &holdProcess{process: p, did: fmt.Sprintf("did:web:localhost%%3A%d", port)}, nil
}

func (s *s3Server) holdEnv(endpoint string) []string {
	return []string{"STORAGE_DRIVER=s3", "S3_ENDPOINT=" + endpoint, "S3_BUCKET=" + bucket, "AWS_ACCESS_KEY_ID=" + s.key, "AWS_SECRET_ACCESS_KEY=" + s.secret}
}

func (b *bench) startAppView(ctx context.Context, name string, h *holdProcess, env ...string) (*process, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	p, err := start(ctx, b.dir, name, "http://"+address, "http://"+address+"/v2/", append(env,
		"ATCR_HTTP_ADDR="+address, "ATCR_DEBUG_ADDR=", "ATCR_BASE_URL=http://"+address, "ATCR_DEFAULT_HOLD_DID="+h.did, "ATCR_LOG_LEVEL=warn",
		"ATCR_DATABASE_DIR="+filepath.Join(b.dir, name), "ATCR_PLC_URL="+b.network.PLCURL, "ATCR_HANDLE_RESOLVER_URL="+b.network.PDSURL,
		"ATCR_TOKEN_EXPIRATION=1h", "TEST_MODE=true",
	), filepath.Join(b.bin, "atcr-appview"))
	if err != nil {
		return nil, err
	}
	b.stoppers = append(b.stoppers, p.stop)
	return p, nil
}

// holdUpload is begin straight at a hold, as an AppView does it.
func (b *bench) holdUpload(h *holdProcess, serviceToken string) begin {
	return func(ctx context.Context) (string, error) {
		var out struct {
			UploadURL string `json:"uploadUrl"`
		}
		in := `{"digest":"sha256:` + strings.Repeat("0", 64) + `"}`
		err := callJSON(ctx, http.MethodPost, h.url+"/xrpc/io.atcr.hold.initiateUpload", "Bearer "+serviceToken, in, &out)
		return out.UploadURL, err
	}
}

// serviceToken is alice's token for uploads at a hold.
func (b *bench) serviceToken(ctx context.Context, h *holdProcess) (string, error) {
	var session struct {
		AccessJwt string `json:"accessJwt"`
	}
	err := callJSON(ctx, http.MethodPost, b.network.PDSURL+"/xrpc/com.atproto.server.createSession", "",
		fmt.Sprintf(`{"identifier":%q,"password":%q}`, b.alice.Handle, b.alice.AppPassword), &session)
	if err != nil {
		return "", err
	}
	var out struct {
		Token string `json:"token"`
	}
	err = callJSON(ctx, http.MethodGet, b.network.PDSURL+"/xrpc/com.atproto.server.getServiceAuth?lxm=io.atcr.hold.initiateUpload&exp="+
		expiry()+"&aud="+strings.ReplaceAll(h.did, "%", "%25"), "Bearer "+session.AccessJwt, "", &out)
	return out.Token, err
}

// registryToken is alice's token for the AppView.
func registryToken(ctx context.Context, appview *process, alice devnet.Account, scope string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, appview.url+"/auth/token?scope="+scope, nil)
	if err != nil {
		return "", err
	}
	req.SetBasicAuth(alice.Handle, alice.AppPassword)
	var out struct{ Token string }
	if err := doJSON(req, &out); err != nil {
		return "", err
	}
	return "Bearer " + out.Token, nil
}

func callJSON(ctx context.Context, method, url, authorization, body string, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	return doJSON(req, out)
}

func doJSON(req *http.Request, out any) error {
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	text, err := io.ReadAll(res.Body)
	if err := errors.Join(err, res.Body.Close()); err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s: %s", req.Method, req.URL.Path, res.Status, text)
	}
	return json.Unmarshal(text, out)
}
