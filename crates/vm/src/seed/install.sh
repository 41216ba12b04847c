# Run by cloud-init's bootcmd at every boot, as root: makes the agent a service of this guest, or
# starts it where there is no systemd. A guest that has the service already is left alone.
here=/run/kohakuriver/seed/kohakuriver
unit=kohakuriver-agent.service
if [ -d /run/systemd/system ]; then
  if ! cmp -s "$here/$unit" "/etc/systemd/system/$unit"; then
    cp "$here/$unit" "/etc/systemd/system/$unit"
    systemctl daemon-reload
    systemctl enable "$unit"
  fi
  systemctl start --no-block "$unit"
else
  bin=/run/kohakuriver/bin
  mkdir -p "$bin"
  mountpoint -q "$bin" || mount -t vfat -o ro,umask=022 LABEL=KRAGENT "$bin"
  [ -S /run/kohakuriver/run/agent.sock ] || setsid "$bin/kohakuriver" agent --guest </dev/null >/dev/null 2>&1 &
fi
# Where a distribution has ifupdown, older versions of cloud-init set the default route with `route`,
# and say nothing where that is not installed.
gateway=$(sed -n 's/.*via: *\([0-9.]*\).*/\1/p' "$here/../network-config")
if [ -n "$gateway" ] && ! ip route show default | grep -q .; then
  ip route add default via "$gateway"
fi
