package appview

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"atcr.io/internal/httpx"
	"atcr.io/internal/session"
	"atcr.io/internal/session/oauth"
	"atcr.io/internal/xrpc"
)

// newOAuth is who this AppView is at people's servers. Its keys are made where there are none.
func newOAuth(c Config, guarded *http.Client) (*oauth.Client, error) {
	base, err := url.Parse(c.BaseURL)
	if err != nil {
		return nil, fmt.Errorf("ATCR_BASE_URL: %w", err)
	}
	settings := oauth.Config{BaseURL: c.BaseURL, HTTP: guarded, AllowHTTP: c.TestMode, PermissionSet: c.OAuthPermissionSet}
	if !oauth.IsPublic(base) {
		if settings.Keys, err = oauth.OpenKeys(c.OAuthKeyFile, nil); err != nil {
			return nil, fmt.Errorf("ATCR_OAUTH_KEY_FILE: %w", err)
		}
	}
	return oauth.New(settings)
}

// warnOfLostKeys tells the operator of sessions whose key is not in the file: they end within the hour, and
// their people sign in again.
func warnOfLostKeys(ctx context.Context, c Config, sessions *session.Store, client *oauth.Client, logger *slog.Logger) error {
	bound, err := sessions.BoundKeys(ctx)
	if err != nil {
		return err
	}
	lost := 0
	for id, n := range bound {
		if !client.HasKey(id) {
			lost += n
		}
	}
	if lost > 0 {
		logger.Warn("the file of OAuth keys lacks those of some sessions, whose people will have to sign in again: is it the file of the other processes?",
			"file", c.OAuthKeyFile, "sessions", lost)
	}
	return nil
}

// getClientMetadata and getJWKS say who this AppView is. Servers fetch them at each sign-in, and keep them
// for some minutes.
func getClientMetadata(metadata func(name string) oauth.Metadata, name string) httpx.Handler {
	return func(w http.ResponseWriter, _ *http.Request) error {
		w.Header().Set("Cache-Control", "public, max-age=300")
		xrpc.WriteJSON(w, http.StatusOK, metadata(name))
		return nil
	}
}

func getJWKS(client *oauth.Client) httpx.Handler {
	return func(w http.ResponseWriter, _ *http.Request) error {
		keys, err := client.JWKS()
		if err != nil {
			return err
		}
		w.Header().Set("Cache-Control", "public, max-age=300")
		xrpc.WriteJSON(w, http.StatusOK, keys)
		return nil
	}
}

// RotateOAuthKey puts a new key into the file of OAuth keys, and takes out what no session needs any more,
// while the AppView runs or not. No session ends by it.
func RotateOAuthKey(ctx context.Context, c Config, logger *slog.Logger, _ []string, stdout io.Writer) (err error) {
	base, err := url.Parse(c.BaseURL)
	if err != nil {
		return fmt.Errorf("ATCR_BASE_URL: %w", err)
	}
	if oauth.IsPublic(base) {
		return errors.New("an AppView on loopback has no OAuth keys")
	}
	secrets, err := loadSecrets(c.SecretKeyFile)
	if err != nil {
		return err
	}
	db, err := openDatabase(ctx, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	sessions, err := session.Open(ctx, db, session.Config{Secret: secrets[0], Accepted: secrets[1:], Logger: logger})
	if err != nil {
		return err
	}
	keys, err := oauth.OpenKeys(c.OAuthKeyFile, nil)
	if err != nil {
		return fmt.Errorf("ATCR_OAUTH_KEY_FILE: %w", err)
	}
	bound, err := sessions.BoundKeys(ctx)
	if err != nil {
		return err
	}
	made, err := keys.Rotate(func(id string) (bool, error) { return bound[id] > 0, nil })
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "key %s is published now, and signs from %s on\nkeys in the file: %d\n",
		made.ID, made.Created.Add(oauth.PublishedFirst).UTC().Format(time.RFC3339), len(keys.All()))
	return err
}
