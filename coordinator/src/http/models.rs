//! `GET /v1/models`.

use api::{ModelCard, ModelList};
use axum::Json;
use axum::extract::{Path, State};

use super::failure::Failure;
use super::state::{AppState, Model};

/// The served models.
pub(super) async fn list(State(state): State<AppState>) -> Json<ModelList> {
    let data = state.models.iter().map(|model| card(model)).collect();
    Json(ModelList { object: "list".to_owned(), data })
}

/// One of them.
pub(super) async fn one(
    State(state): State<AppState>,
    Path(id): Path<String>,
) -> Result<Json<ModelCard>, Failure> {
    Ok(Json(card(&*state.model(Some(&id))?)))
}

fn card(model: &Model) -> ModelCard {
    ModelCard {
        id: model.name.clone(),
        object: "model".to_owned(),
        created: model.created_s,
        owned_by: "weft".to_owned(),
        context_length: model.context,
    }
}
